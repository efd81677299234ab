"""What tests of several folders share; having a conftest here also lets them import `helpers`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from helpers import write_corpus
from hypothesis import settings
from recipe_project import Project

# The same examples in every run, so that a change is judged by what it changes; HYPOTHESIS_PROFILE=explore draws new ones.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


@pytest.fixture(scope="session")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder with the labelled sets `train` and `dev`."""
    return write_corpus(tmp_path_factory.mktemp("speech"))


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """The recipe's scripts with a stand-in for asrkit."""
    return Project(tmp_path)
