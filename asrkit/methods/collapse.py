"""Telling that a self-supervised run has collapsed, from its log."""

from __future__ import annotations

import math
from collections.abc import Mapping

from asrkit.heads.head import SelfSupervisedHead


class CollapseWatch:
    """Counts rows of the log in which there are next to no codes."""

    def __init__(self, floor: float, patience: int, head: SelfSupervisedHead, section: str, rate: str) -> None:
        """Begin to watch.

        Args:
            floor: a code perplexity per codebook at or below this counts as collapsed; 0 never does.
            patience: rows in a row before it is said.
            head: whose codes they are.
            section: the key of its section.
            rate: the key of the learning rate.
        """
        self.floor = floor
        self.patience = patience
        self.codebooks = head.codebooks
        self.reason = head.advice.reason
        self.mend = head.advice.mend.format(section=section, rate=rate)
        self.rows = 0

    def message(self, metrics: Mapping[str, float]) -> str | None:
        """Take a row of the log; return why the run should stop, or None."""
        perplexity = metrics.get("code_perplexity", math.inf)  # unquantised targets have none
        self.rows = self.rows + 1 if perplexity <= self.floor * self.codebooks else 0
        if self.rows < self.patience:
            return None
        return (
            f"the code perplexity has been as low as {perplexity:.2f} for {self.rows} rows of the log: {self.reason}; "
            f"{self.mend}"
        )
