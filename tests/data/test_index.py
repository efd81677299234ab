from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lhotse import MonoCut, MultiCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource

from asrkit.data.index import CUTS, INDEX, SET, SetIndex, write_index
from asrkit.errors import AsrkitError
from asrkit.randomness import utterance_key


def make_cut(name: str, seconds: float, text: str | None, channels: int = 1) -> MonoCut | MultiCut:
    kind, channel = (MonoCut, 0) if channels == 1 else (MultiCut, list(range(channels)))
    supervision = SupervisionSegment(name, name, 0.0, seconds, channel, text)
    recording = Recording(
        name, [AudioSource("file", list(range(channels)), "/a.wav")], 16000, int(seconds * 16000), seconds
    )
    return kind(name, 0.0, seconds, channel, [] if text is None else [supervision], recording=recording)


def write_set(folder: Path, cuts: list[MonoCut | MultiCut], sources: list[int] | None = None) -> SetIndex:
    folder.mkdir(parents=True, exist_ok=True)
    write_index(folder, cuts, sources)
    (folder / SET).write_text(json.dumps({"name": "train", "labelled": True}))
    return SetIndex.open(folder)


@settings(max_examples=30, deadline=None)
@given(
    entries=st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8),
            st.integers(1, 1000),
            st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
            st.integers(1, 3),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_every_cut_comes_back(tmp_path_factory: pytest.TempPathFactory, entries: list) -> None:
    cuts = [make_cut(name, tenths / 10, text, channels) for name, tenths, text, channels in entries]
    index = write_set(tmp_path_factory.mktemp("set"), cuts, [i % 3 for i in range(len(cuts))])
    assert len(index) == len(cuts)
    for row in np.random.default_rng(0).permutation(len(cuts)):
        assert index.read_cut(row) == cuts[row]
    assert index.durations.tolist() == [np.float32(cut.duration) for cut in cuts]
    assert index.keys.tolist() == [utterance_key(cut.id) for cut in cuts]
    assert index.units.tolist() == [-1 if text is None else len(text) for _, _, text, _ in entries]
    assert index.rows["source"].tolist() == [i % 3 for i in range(len(cuts))]
    assert [record["id"] for record in index.records()] == [cut.id for cut in cuts]


def test_pickling_sends_the_folder_only(tmp_path: Path) -> None:
    index = write_set(tmp_path / "set", [make_cut(f"u{i}", 1.0, "a" * 100) for i in range(500)])
    sent = pickle.dumps(index)
    assert len(sent) < 1000
    received = pickle.loads(sent)
    assert received.read_cut(499) == index.read_cut(499)
    assert received.name == "train"
    assert received.labelled


def test_the_index_is_mapped_and_not_read(tmp_path: Path) -> None:
    index = write_set(tmp_path / "set", [make_cut("u", 1.0, None)])
    assert isinstance(index.rows, np.memmap)


@pytest.mark.parametrize("row", [2, -3, 100])
def test_rows_outside_are_refused(tmp_path: Path, row: int) -> None:
    index = write_set(tmp_path / "set", [make_cut("u", 1.0, None), make_cut("v", 1.0, None)])
    with pytest.raises(IndexError):
        index.read_cut(row)


def _truncate(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / CUTS).unlink(),
        lambda folder: (folder / INDEX).unlink(),
        lambda folder: (folder / SET).unlink(),
        lambda folder: (folder / SET).write_text("{"),
        lambda folder: (folder / SET).write_text("[]"),
        lambda folder: _truncate(folder / INDEX, 40),
        lambda folder: _truncate(folder / INDEX, 0),
        lambda folder: _truncate(folder / CUTS, 0),
        lambda folder: _truncate(folder / CUTS, 10),
        lambda folder: np.save(folder / INDEX, np.zeros(3)),
        lambda folder: np.save(folder / INDEX, np.array([{"a": 1}], dtype=object), allow_pickle=True),
    ],
)
def test_a_damaged_set_is_told_in_one_line(tmp_path: Path, damage) -> None:
    folder = tmp_path / "set"
    write_set(folder, [make_cut("u", 1.0, "x"), make_cut("v", 1.0, "y")])
    damage(folder)
    with pytest.raises(AsrkitError) as caught:
        SetIndex.open(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_line_is_told_when_it_is_read(tmp_path: Path) -> None:
    index = write_set(tmp_path / "set", [make_cut("u", 1.0, "x"), make_cut("v", 1.0, "y")])
    path = tmp_path / "set" / CUTS
    path.write_bytes(path.read_bytes()[:-20])
    index = SetIndex.open(index.dir)
    assert index.read_cut(0).id == "u"
    with pytest.raises(AsrkitError, match="damaged line"):
        index.read_cut(1)
