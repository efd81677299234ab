"""The CUDA kernels of CTC on a GPU; without one, `test_ctc_kernel.py` runs the same source on the host."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from ctc_checks import CHECKS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_gpu(check: Callable[[], str]) -> None:
    assert check()
