"""A set in shards is the set that it was: the same utterances in the same batches, to the bit, from here or from a URL."""

from __future__ import annotations

import importlib
import json
import shutil
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
import soundfile
from lhotse import CutSet
from test_stream import consume, same

from asrkit import cli
from asrkit.data import remote, sharding
from asrkit.data.audio import read
from asrkit.data.index import SetIndex
from asrkit.data.prepare import PrepareConfig, prepare_table
from asrkit.data.sharding import ShardConfig
from asrkit.data.shards import Member
from asrkit.data.stream import DataConfig, Stream, StreamConfig, evaluation_batches
from asrkit.errors import AsrkitError
from asrkit.text.units import Units

RATE = 16_000
UNITS = Units.characters(["ABC "])


def write_files(home: Path) -> Path:
    """Write files of all kinds, and a table of whole ones, stretches and channels of them; return the table."""
    home.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    lines = ["id\taudio\ttext\tstart\tduration\tchannel"]
    kinds = [
        ("pcm.wav", "PCM_16", 1, RATE),
        ("flac.flac", "PCM_16", 1, RATE),
        ("deep.wav", "PCM_24", 1, RATE),
        ("deep.flac", "PCM_24", 2, 22_050),
        ("byte.wav", "PCM_U8", 1, 8000),
        ("law.wav", "ULAW", 1, 8000),
        ("float.wav", "FLOAT", 2, RATE),
        ("loud.wav", "FLOAT", 1, RATE),
        ("music.ogg", "VORBIS", 1, RATE),
        ("speech.opus", "OPUS", 1, RATE),
        ("song.mp3", "MPEG_LAYER_III", 2, 44_100),
        ("many.wav", "PCM_16", 9, RATE),
    ]
    for name, subtype, channels, rate in kinds:
        wave = random.uniform(-0.9, 0.9, (rate, channels))
        form = "OGG" if name.endswith("opus") else None
        soundfile.write(home / name, 3 * wave if name == "loud.wav" else wave, rate, subtype=subtype, format=form)
        lines.append(f"{name}-whole\t{name}\tA B\t\t\t")
        lines.append(f"{name}-part\t{name}\tC\t0.25\t0.501\t")
        if channels > 1:
            lines.append(f"{name}-second\t{name}\tBA\t\t\t1")
    (home / "train.tsv").write_text("\n".join(lines) + "\n")
    return home / "train.tsv"


def prepared(table: Path, out: Path, shards: ShardConfig | None = None, workers: int = 1) -> Path:
    prepare_table([table], out, PrepareConfig(workers=workers, shards=shards))
    return out


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The table, and the set that leaves audio in its files."""
    home = tmp_path_factory.mktemp("shards")
    table = write_files(home / "audio")
    return table, prepared(table, home / "files")


def batches(data: Path, units: Units | None = UNITS, workers: int = 0, rank: int = 0, world_size: int = 1, **settings):
    config = StreamConfig(sets=["train"], seconds_per_update=4.0, **settings)
    data_config = DataConfig(dir=str(data), batch_seconds=2.5, workers=workers)
    stream = Stream(config, data_config, units, 1, rank, world_size)
    given = consume(stream, stream.updates_per_epoch + 2)
    stream.close()
    assert stream.skipped == 0
    return [batch for update in given for batch in update]


def assert_equal(one, other) -> None:
    assert len(one) == len(other) > 3
    for first, second in zip(one, other, strict=True):
        same(first, second)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"speed_factors": [0.9, 1.1]},
        {"units": None, "crop_seconds": 0.3},
        {"workers": 2},
        {"rank": 1, "world_size": 2},
    ],
)
def test_batches_are_those_of_the_files_to_the_bit(files, tmp_path: Path, settings) -> None:
    table, plain = files
    sharded = prepared(table, tmp_path / "sharded", ShardConfig(hours=0.001))
    assert len(list((sharded / "train/shards").glob("recording.*.tar"))) > 3
    assert_equal(batches(plain, **settings), batches(sharded, **settings))
    given = [list(evaluation_batches([data / "train"], UNITS, DataConfig(workers=0))) for data in (plain, sharded)]
    for one, other in zip(*given, strict=True):
        same(one, other)


def test_processes_change_nothing_and_neither_does_another_run(files, tmp_path: Path) -> None:
    table, _ = files
    for workers in (1, 3, 1):
        prepared(table, tmp_path / f"by-{workers}", ShardConfig(hours=0.001), workers)
    one, three = (
        {path.relative_to(top): path.read_bytes() for path in sorted(top.rglob("*")) if path.is_file()}
        for top in (tmp_path / "by-1", tmp_path / "by-3")
    )
    assert one == three


def test_lhotse_reads_the_shards(files, tmp_path: Path) -> None:
    table, plain = files
    sharded = prepared(table, tmp_path / "sharded", ShardConfig(hours=0.002))
    index = SetIndex.open(plain / "train")
    cuts = list(CutSet.from_shar(in_dir=sharded / "train/shards"))
    assert [cut.id for cut in cuts] == [record["id"] for record in index.records()]
    for row, cut in enumerate(cuts):
        wave = np.atleast_2d(cut.load_audio()).mean(0)
        rate = int(cut.sampling_rate)
        assert np.array_equal(wave.astype(np.float32), read(index.read_cut(row), rate)), cut.id
        assert cut.supervisions[0].text == index.read_cut(row).supervisions[0].text


def test_what_is_compressed_already_is_not_compressed_again(files, tmp_path: Path) -> None:
    table, _ = files
    sharded = prepared(table, tmp_path / "sharded", ShardConfig())
    with tarfile.open(sharded / "train/shards/recording.000000.tar") as tar:
        found = {
            name.rpartition(".")[0]: name.rpartition(".")[2] for name in tar.getnames() if not name.endswith("json")
        }
        for name in ("flac.flac", "music.ogg", "speech.opus", "song.mp3"):
            member = tar.extractfile(f"{name}-whole.{found[f'{name}-whole']}")
            assert member is not None
            assert member.read() == (table.parent / name).read_bytes()
    wanted = {"pcm.wav": "flac", "deep.wav": "flac", "byte.wav": "flac", "law.wav": "flac", "loud.wav": "au"}
    assert {name: found[f"{name}-whole"] for name in wanted} == wanted


def test_a_prepared_folder_may_move_and_the_corpus_may_go(files, tmp_path: Path) -> None:
    table, plain = files
    expected = batches(plain)
    audio = tmp_path / "audio"
    shutil.copytree(table.parent, audio)
    prepared(audio / "train.tsv", tmp_path / "sharded", ShardConfig())
    (tmp_path / "sharded").rename(tmp_path / "moved")
    shutil.rmtree(audio)
    assert_equal(batches(tmp_path / "moved"), expected)


@pytest.mark.parametrize("protocol", ["memory", "file", "folder"])
def test_shards_elsewhere(files, tmp_path: Path, protocol: str) -> None:
    table, plain = files
    location = {"memory": "memory://shards-test/a", "file": f"file://{tmp_path}/far", "folder": f"{tmp_path}/near"}[
        protocol
    ]
    sharded = prepared(table, tmp_path / "sharded", ShardConfig(location, hours=0.002))
    assert not (sharded / "train/shards").exists()
    assert json.loads((sharded / "train/set.json").read_text())["shards"].startswith(location)
    assert_equal(batches(sharded), batches(plain))
    assert not list(tmp_path.rglob("*probe*"))


@pytest.mark.parametrize("protocol", ["memory", "folder"])
def test_shards_of_another_set_are_not_overwritten(files, tmp_path: Path, protocol: str) -> None:
    table, plain = files
    location = {"memory": f"memory://shards-test/{tmp_path.name}", "folder": f"{tmp_path}/near"}[protocol]
    mine = prepared(table, tmp_path / "mine", ShardConfig(location, hours=0.003))
    with pytest.raises(AsrkitError, match="not this set's shards"):
        prepared(table, tmp_path / "other", ShardConfig(location, hours=0.001))
    assert not (tmp_path / "other").exists()
    # Its own it may write again.
    prepared(table, mine, ShardConfig(location, hours=0.002))
    assert_equal(batches(mine), batches(plain))


def test_shards_of_an_interrupted_run_are_its_own(files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, plain = files
    config = ShardConfig(f"{tmp_path}/near", hours=0.002)
    write, done = sharding._write_shard, []

    def interrupted(job):
        if done:
            raise KeyboardInterrupt
        done.append(write(job))
        return done[-1]

    monkeypatch.setattr(sharding, "_write_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepared(table, tmp_path / "mine", config)
    assert any((tmp_path / "near/train").iterdir())
    monkeypatch.setattr(sharding, "_write_shard", write)
    assert_equal(batches(prepared(table, tmp_path / "mine", config)), batches(plain))


def test_opus_is_small_and_close(tmp_path: Path) -> None:
    time = np.arange(3 * RATE) / RATE
    wave = 0.3 * np.sin(2 * np.pi * 200 * time) * (1 + np.sin(2 * np.pi * 3 * time))
    (tmp_path / "audio").mkdir()
    for name, rate in (("a", RATE), ("b", 22_050)):
        soundfile.write(tmp_path / f"audio/{name}.wav", np.stack([wave, wave], 1)[: 2 * rate], rate)
    (tmp_path / "train.tsv").write_text("id\taudio\ttext\na\taudio/a.wav\tA\nb\taudio/b.wav\tB\n")
    plain = SetIndex.open(prepared(tmp_path / "train.tsv", tmp_path / "files") / "train")
    sharded = SetIndex.open(prepared(tmp_path / "train.tsv", tmp_path / "opus", ShardConfig(format="opus")) / "train")
    for row in range(2):
        one, other = read(plain.read_cut(row), RATE), read(sharded.read_cut(row), RATE)
        assert len(one) == len(other)
        assert np.corrcoef(one, other)[0, 1] > 0.99
        size = Member.parse(sharded.read_cut(row).recording.sources[0].source).size
        assert size < len(one) * 2 / 5


def test_without_fsspec_the_package_is_named(files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, _ = files
    sharded = prepared(table, tmp_path / "sharded", ShardConfig("memory://shards-test/b"))

    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    for run in (lambda: batches(sharded), lambda: prepared(table, tmp_path / "more", ShardConfig("s3://bucket/x"))):
        with pytest.raises(AsrkitError, match=r'needs fsspec \(pip install "asrkit\[cloud\]"\)'):
            run()


@pytest.mark.parametrize("location", ["nonsense://a/b", "abfs://a/b", "FILE/x"])
def test_a_place_that_takes_no_shards_is_told_before_the_audio_is_read(files, tmp_path: Path, location: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AsrkitError) as caught:
        prepared(files[0], tmp_path / "sharded", ShardConfig(location.replace("FILE", f"{tmp_path}/file")))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "sharded/train").exists()


def test_a_network_that_stumbles_costs_no_utterance(files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, plain = files
    sharded = prepared(table, tmp_path / "sharded", ShardConfig("memory://shards-test/c"))
    system, calls = fsspec.filesystem("memory"), []
    whole = type(system).cat_file

    def stumbling(self, *arguments, **settings):
        calls.append(arguments)
        if len(calls) % 3:
            raise ConnectionError("reset by peer")
        return whole(self, *arguments, **settings)

    monkeypatch.setattr(type(system), "cat_file", stumbling)
    monkeypatch.setattr(remote, "_PAUSE_SECONDS", 0.0)
    assert_equal(batches(sharded), batches(plain))


def test_preparing_again_without_shards_leaves_none(files, tmp_path: Path) -> None:
    table, plain = files
    prepared(table, tmp_path / "data", ShardConfig())
    prepared(table, tmp_path / "data")
    assert not (tmp_path / "data/train/shards").exists()
    for name in ("cuts.jsonl", "index.npy", "set.json"):
        assert (tmp_path / "data/train" / name).read_bytes() == (plain / "train" / name).read_bytes()


def test_the_command(files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, plain = files
    command = ["prepare", "table", str(table), "--output-dir", str(tmp_path / "data"), "--workers", "1"]
    assert cli.main([*command, "--shards", "--shard-hours", "0.001"]) == 0
    assert_equal(batches(tmp_path / "data"), batches(plain))
    for wrong in (["--shard-hours", "1"], ["--shards", "--headers-only"], ["--shards", "--shard-hours", "0"]):
        capsys.readouterr()
        assert cli.main([*command, *wrong]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
