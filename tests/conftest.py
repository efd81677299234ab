"""What tests of several folders share; having a conftest here also lets them import `helpers`."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import write_corpus


@pytest.fixture(scope="session")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder with the labelled sets `train` and `dev`."""
    return write_corpus(tmp_path_factory.mktemp("speech"))
