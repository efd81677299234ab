"""Comparing experiments: what is compared, what is written, what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import WAVEFORM, settings
from matplotlib.image import imread

from asrkit import cli
from asrkit.analysis.pwcca import pwcca
from asrkit.analysis.run import Run
from asrkit.analysis.similarity import Side, SimilarityConfig, compare_experiments, read_similarities
from asrkit.config import from_dict, save
from asrkit.data.stream import DataConfig, evaluation_batches
from asrkit.files import write_text
from asrkit.training.checkpoint import Checkpoints
from asrkit.training.config import schema
from asrkit.training.experiment import build_method, open_experiment


def experiment(folder: Path, speech: Path, seed: int = 1, **changes: Any) -> Path:
    """Write an experiment with random weights, others for `best` (update 1) than for `last`."""
    config = from_dict(schema("pretrain"), settings("pretrain", speech, **changes))
    config.exp_dir = str(folder)
    save(config, folder / "config.yaml")
    write_text(folder / "recipe", "pretrain\n")
    for update, best in ((1, True), (2, False)):
        torch.manual_seed(10 * seed + update)
        weights = build_method(config, None).state_dict()
        Checkpoints(folder).save(update, {"model": weights, "update": update}, best=best)
    return folder


@pytest.fixture(scope="module")
def a(tmp_path_factory: pytest.TempPathFactory, speech: Path) -> Path:
    return experiment(tmp_path_factory.mktemp("exp") / "a", speech)


@pytest.fixture(scope="module")
def b(a: Path, speech: Path) -> Path:
    return experiment(a.parent / "b", speech, seed=2, encoder={"dim": 12})


def run(*arguments: str | Path) -> int:
    return cli.main(["similarity", "--device", "cpu", *map(str, arguments)])


def features(folder: Path, speech: Path, sets: tuple[str, ...], which: str = "best") -> list[np.ndarray]:
    """Return each layer's states of every utterance on its own, nothing padded, (frames, C) each."""
    method, _ = open_experiment(folder).method(which)
    layers: list[list[torch.Tensor]] = [[] for _ in range(method.encoder.config.layers + 1)]
    for batch in evaluation_batches([speech / name for name in sets], None, DataConfig(batch_seconds=0.01, workers=0)):
        assert len(batch.ids) == 1
        with torch.no_grad():
            found = method.encoder(batch.waves, batch.wave_lengths, batch.host_lengths, keep_layers=True).layers
        for kept, states in zip(layers, found, strict=True):
            kept.append(states[0])
    return [torch.cat(kept).double().numpy() for kept in layers]


def test_layers_are_compared_on_every_valid_frame(a: Path, b: Path, speech: Path, capsys) -> None:
    assert run("--a", a, "--b", b, "--data", speech, "--sets", "train", "dev") == 0
    shown = capsys.readouterr().out
    (found,) = read_similarities(b / "similarity_a" / "similarity.json")
    ours, theirs = (features(folder, speech, ("train", "dev")) for folder in (a, b))
    assert found.layers == ("0", "1", "2")
    assert found.frames == len(ours[0])
    for place, (x, y) in enumerate(zip(ours, theirs, strict=True)):
        assert found.a_to_b[place] == pytest.approx(pwcca(x, y), abs=1e-3)
        assert found.b_to_a[place] == pytest.approx(pwcca(y, x), abs=1e-3)
        assert found.pwcca[place] == pytest.approx((pwcca(x, y) + pwcca(y, x)) / 2, abs=1e-3)
        assert f"{found.pwcca[place]:.3f}" in shown
    assert (found.name, found.sets, found.a_update, found.b_update) == ("a and b", ("train", "dev"), 1, 1)
    assert imread(b / "similarity_a" / "similarity.png").shape[:2] == (704, 1152)
    (seen,) = Run.open(b).similarities()
    assert (seen.name, seen.layers, seen.values) == (found.name, found.layers, found.pwcca)


def test_batches_do_not_matter(a: Path, b: Path, speech: Path, tmp_path: Path) -> None:
    config = SimilarityConfig(speech, ("train",), device="cpu")
    found = []
    for seconds in (0.01, 3.0, 100.0):
        copy = experiment(tmp_path / str(seconds), speech, data={"batch_seconds": seconds})
        found.append(compare_experiments("pair", Side(copy), Side(b), config).pwcca)
    np.testing.assert_allclose(found[1:], [found[0]] * 2, atol=1e-4)


@pytest.mark.parametrize("changes", [{}, WAVEFORM, {**WAVEFORM, "padding": "foreign"}])
def test_an_experiment_is_like_itself(changes: dict[str, Any], speech: Path, tmp_path: Path) -> None:
    folder = experiment(tmp_path / "exp", speech, encoder=changes)
    assert run("--a", folder, "--b", folder, "--data", speech, "--sets", "train", "--output", tmp_path) == 0
    (found,) = read_similarities(tmp_path / "similarity.json")
    np.testing.assert_allclose(found.pwcca, 1.0, atol=1e-6)
    config = SimilarityConfig(speech, ("train",), device="cpu")
    other = compare_experiments("pair", Side(folder), Side(folder, "last"), config)
    assert other.b_update == 2
    assert max(other.pwcca) < 0.98


def test_nothing_is_random(a: Path, speech: Path) -> None:
    assert open_experiment(a).config.encoder.layer_drop > 0, "in training there would be"
    config = SimilarityConfig(speech, ("dev",), device="cpu")
    first, again = (compare_experiments("pair", Side(a), Side(a, "last"), config) for _ in range(2))
    assert first == again


def test_several_pairs_go_into_one_file_and_one_figure(a: Path, b: Path, speech: Path, tmp_path: Path, capsys) -> None:
    data = ("--data", speech, "--sets", "train")
    pairs = ("--pair", f"self [x] $y=={a},{a}", "--pair", f"_other={a},{b}")
    assert run(*pairs, *data) == 2
    assert "--output DIR" in capsys.readouterr().err
    assert run(*pairs, *data, "--output", tmp_path / "two", "--plot", tmp_path / "two.svg") == 2
    assert "not an experiment" in capsys.readouterr().err
    pairs = ("--pair", f"self [x] $y$={a},{a}", *pairs[2:])
    assert run(*pairs, *data, "--output", tmp_path / "two", "--plot", tmp_path / "two.svg") == 0
    assert "self [x] $y$" in capsys.readouterr().out
    two = read_similarities(tmp_path / "two" / "similarity.json")
    assert [pair.name for pair in two] == ["self [x] $y$", "_other"]
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["similarity.json"]
    assert (tmp_path / "two.svg").read_text(encoding="utf-8").startswith("<?xml")

    whole = tmp_path / "two" / "similarity.json"
    deep = ("--layers", "0", "1:2", "2", "2")
    assert run("--a", a, "--b", b, *deep, *data, "--with", whole, "--output", tmp_path / "three") == 0
    three = read_similarities(tmp_path / "three" / "similarity.json")
    assert three[:2] == two
    assert three[2].layers == ("0", "1:2", "2")
    assert three[2].pwcca[::2] == pytest.approx(two[1].pwcca[::2], abs=1e-9)
    assert run("--with", whole, "--output", tmp_path / "again") == 0
    assert (tmp_path / "again" / "similarity.json").read_bytes() == whole.read_bytes()
    assert run("--with", whole, "--pair", f"_other={a},{b}", *data, "--output", tmp_path / "again") == 2
    assert "two pairs are called '_other'" in capsys.readouterr().err


def test_models_of_different_depth_need_a_word_on_layers(a: Path, speech: Path, tmp_path: Path, capsys) -> None:
    deep = experiment(tmp_path / "deep", speech, encoder={"layers": 4})
    common = ("--a", a, "--b", deep, "--data", speech, "--sets", "train", "--output", tmp_path)
    assert run(*common) == 2
    said = capsys.readouterr().err
    assert f"{a} has 2 blocks, {deep} has 4 (say which layers" in said
    assert run(*common, *said.split("such as ")[1].rstrip(")\n").split()) == 0
    assert read_similarities(tmp_path / "similarity.json")[0].layers == ("1", "2:4")
    assert run(*common, "--layers", "2:5") == 2
    assert "no layer 2:5" in capsys.readouterr().err


def test_unlabelled_speech_will_do_and_little_is_warned_of(
    a: Path, b: Path, speech: Path, tmp_path: Path, capsys
) -> None:
    folder = tmp_path / "data" / "train"
    folder.mkdir(parents=True)
    for path in (speech / "train").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    values = json.loads((folder / "set.json").read_text())
    (folder / "set.json").write_text(json.dumps({**values, "labelled": False}))
    common = ("--a", a, "--b", b, "--output", tmp_path)
    assert run(*common, "--data", folder.parent, "--sets", "train") == 0
    unlabelled = read_similarities(tmp_path / "similarity.json")
    assert run(*common, "--data", speech, "--sets", "train") == 0
    assert read_similarities(tmp_path / "similarity.json") == unlabelled
    capsys.readouterr()
    assert run(*common, "--data", speech, "--sets", "dev") == 0
    (few,) = read_similarities(tmp_path / "similarity.json")
    assert f"{few.frames} frames are few: even unrelated features would reach {max(few.noise):.2f}" in (
        capsys.readouterr().out.replace("\n", " ")
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"encoder": {"logmel": {"subsampling": 2}}}, "frames do not fall together: 25 per second in .*a, 50 in"),
        ({"data": {"sample_rate": 8000}}, "different sample rates: 16000 Hz for .*a, 8000 Hz for"),
    ],
)
def test_frames_have_to_fall_together(
    a: Path, speech: Path, tmp_path: Path, changes: dict[str, Any], says: str, capsys
) -> None:
    other = experiment(tmp_path / "other", speech, **changes)
    assert run("--a", a, "--b", other, "--data", speech, "--sets", "train") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(says, said)
    assert list(other.glob("similarity*")) == []


def test_frontends_of_one_rate_may_round_differently(speech: Path, tmp_path: Path) -> None:
    fine = experiment(tmp_path / "logmel", speech, encoder={"logmel": {"subsampling": 2}})
    waves = experiment(tmp_path / "waves", speech, encoder=WAVEFORM)
    found = compare_experiments("pair", Side(fine), Side(waves), SimilarityConfig(speech, ("train",), device="cpu"))
    lengths = [len(features(folder, speech, ("train",))[0]) for folder in (fine, waves)]
    assert lengths[0] != lengths[1]
    assert found.frames <= min(lengths)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "nothing to compare"),
        (["--a", "A"], "one experiment has nothing to be compared with"),
        (["--a", "A", "--b", "B"], "no speech to compare on"),
        (["--a", "A", "--b", "B", "--data", "DATA"], "name sets"),
        (["--a", "A", "--b", "B", "--data", "DATA", "--sets", "none"], "not a prepared set"),
        (["--a", "A", "--b", "none", "--data", "DATA", "--sets", "dev"], "not an experiment"),
        (["--pair", "A,B", "--data", "DATA", "--sets", "dev"], "NAME=EXP,EXP"),
        (["--pair", "x=A", "--data", "DATA", "--sets", "dev"], "NAME=EXP,EXP"),
        (["--a", "A", "--b", "B", "--data", "DATA", "--sets", "dev", "--layers", "x"], "--layers x"),
        (["--a", "A", "--b", "B", "--data", "DATA", "--sets", "dev", "--cut-off", "1"], "--cut-off is 1"),
        (["--a", "A", "--b", "B", "--data", "DATA", "--sets", "dev", "--plot", "x.y"], "no picture of kind 'y'"),
        (["--with", "none.json", "--output", "x"], "cannot be read"),
    ],
)
def test_mistakes_are_told_in_one_line(
    a: Path, b: Path, speech: Path, tmp_path: Path, arguments: list[str], says: str, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"A": a, "B": b, "DATA": speech}
    arguments = [str(names.get(argument, argument)) for argument in arguments]
    arguments = [argument.replace("x=A", f"x={a}") for argument in arguments]
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert says in " ".join(error.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"pairs": [{"name": "x"}]}', '{"pairs": [{"name": "x", "layers": [0], "pwcca": [7]}]}', "\xff"]
)
def test_files_that_are_something_else(text: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "similarity.json").write_bytes(text.encode("latin-1"))
    assert run("--with", tmp_path / "similarity.json", "--output", tmp_path / "x") == 2
    assert "not a file of `asrkit similarity`" in " ".join(capsys.readouterr().err.split())
