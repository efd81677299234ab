"""Shards that are cut short, changed, exchanged or gone, and manifests that point elsewhere in them."""

from __future__ import annotations

import functools
import io
import json
import logging
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from bad_audio import sound
from bad_tables import epoch
from faults import Case, Lines, Random, cut_off, flip, one_line

from asrkit.data.batch import Batch
from asrkit.data.index import CUTS, INDEX
from asrkit.data.prepare import PrepareConfig, prepare_table
from asrkit.data.sharding import ShardConfig
from asrkit.data.shards import Member
from asrkit.errors import AsrkitError

COUNT = 6
"""Utterances, in three shards."""


@functools.cache
def prepared(form: str) -> Path:
    """Return a good prepared folder whose set `train` lies in three shards."""
    home = Path(tempfile.mkdtemp(prefix="asrkit-faults-"))
    lines = ["id\taudio\ttext"]
    for number in range(COUNT):
        (home / f"{number}.wav").write_bytes(sound("wav", number))
        lines.append(f"good-{number}\t{number}.wav\tAB")
    (home / "train.tsv").write_text("\n".join(lines))
    shards = ShardConfig(format=form, hours=1.1 / 3600)
    prepare_table([home / "train.tsv"], home / "data", PrepareConfig(workers=1, shards=shards))
    assert len(list((home / "data/train/shards").glob("*.tar"))) == 3
    return home / "data"


@functools.cache
def _expected(form: str) -> dict[str, Batch]:
    return epoch(prepared(form))[0]


def _members(folder: Path) -> dict[str, Member]:
    records = [json.loads(line) for line in (folder / CUTS).read_text().splitlines()]
    return {record["id"]: Member.parse(record["recording"]["sources"][0]["source"]) for record in records}


def _archive(folder: Path, change: Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]], shard: Path) -> None:
    """Write a shard anew with other members."""
    with tarfile.open(shard) as tar:
        members = [(entry.name, file.read()) for entry in tar if (file := tar.extractfile(entry)) is not None]
    with tarfile.open(shard, "w") as tar:
        for name, data in change(members):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def _no_file(shard: Path, kind: int) -> None:
    shard.unlink()
    if kind == 1:
        shard.mkdir()
    elif kind == 2:
        shard.symlink_to(shard.name)
    elif kind == 3:
        os.mkfifo(shard)
    elif kind == 4:
        shard.write_bytes(b"")


def _shard(home: Path, kind: int, form: str, seed: int) -> None:
    """Damage one of three shards: the other two give what they gave."""
    random = np.random.default_rng(seed)
    shutil.copytree(prepared(form), home / "data")
    folder = home / "data/train"
    shard = sorted((folder / "shards").glob("*.tar"))[int(random.integers(3))]
    touched = {name for name, member in _members(folder).items() if Path(member.shard).name == shard.name}
    data = shard.read_bytes()
    kinds: list[Callable[[], object]] = [
        lambda: shard.write_bytes(cut_off(data, random)),
        lambda: shard.write_bytes(flip(data, random, int(random.integers(1, 200)))),
        lambda: _archive(folder, lambda members: members[2:], shard),
        lambda: _archive(folder, lambda members: members[::-1], shard),
        lambda: _archive(folder, lambda members: [(name, cut_off(part, random)) for name, part in members], shard),
        lambda: _archive(folder, lambda members: [members[-2], *members[1:-2], members[0], members[-1]], shard),
        lambda: shutil.copyfile(next(other for other in shard.parent.glob("*.tar") if other != shard), shard),
        lambda: _no_file(shard, int(random.integers(5))),
        lambda: shard.write_bytes(bytes(random.integers(0, 256, len(data), dtype=np.uint8))),
        lambda: shard.write_bytes(data[:512] + data),
    ]
    kinds[kind % len(kinds)]()
    _check(home, form, touched)


def _pointer(home: Path, kind: int, form: str, seed: int) -> None:
    """Let a line of the manifest point elsewhere."""
    random = np.random.default_rng(seed)
    shutil.copytree(prepared(form), home / "data")
    folder = home / "data/train"
    members = _members(folder)
    name, other = random.choice(sorted(members), 2, replace=False)
    old = members[name]
    moved = [
        str(members[other]),
        str(Member(old.shard, old.offset + 512, old.size, old.checksum)),
        str(Member(old.shard, old.offset, old.size - 7, old.checksum)),
        str(Member(old.shard, 10**17, old.size, old.checksum)),
        str(Member(old.shard, old.offset, 10**11, old.checksum)),
        str(Member("shards/recording.000009.tar", old.offset, old.size, old.checksum)),
        str(Member("memory://nothing/here.tar", old.offset, old.size, old.checksum)),
        str(Member("nonsense://a/b.tar", old.offset, old.size, old.checksum)),
        str(Member("/dev/zero", old.offset, old.size, old.checksum)),
        str(old)[:-2],
        "",
        "shards",
        f"{old.shard}#-1+-1:00000000",
    ]
    text = (folder / CUTS).read_text().replace(json.dumps(str(old)), json.dumps(moved[kind % len(moved)]))
    lines = text.encode().splitlines(keepends=True)
    (folder / CUTS).write_bytes(text.encode())
    rows = np.load(folder / INDEX)
    rows["offset"] = np.cumsum([0, *map(len, lines[:-1])])
    np.save(folder / INDEX, rows)
    _check(home, form, {str(name)})


def _check(home: Path, form: str, touched: set[str]) -> None:
    try:
        with Lines(logging.getLogger("asrkit.data")) as lines:
            found, stream = epoch(home / "data")
    except AsrkitError as error:
        raise AssertionError(f"the run is refused: {error}") from None
    expected = _expected(form)
    assert set(expected) - touched <= set(found), "a good utterance is lost"
    assert len(found) + stream.skipped == COUNT, "an utterance is neither used nor counted"
    assert len(lines.found) == stream.skipped, f"{len(lines.found)} lines for {stream.skipped} utterances"
    for line in lines.found:
        one_line(line)
    for name, batch in found.items():
        assert np.array_equal(batch.waves, expected[name].waves), f"other samples of {name}"


def cases(count: int, random: Random) -> Iterator[Case]:
    """Yield damaged shards."""
    for number in range(count):
        seed, form = int(random.integers(1 << 30)), ("flac", "opus")[number // 3 % 2]
        if number % 3:
            kind = number * 2 // 3
            yield Case(f"{form}-{kind % 10}", lambda home, k=kind, f=form, s=seed: _shard(home, k, f, s))
        else:
            kind = number // 3
            yield Case(f"pointer-{kind % 13}", lambda home, k=kind, f=form, s=seed: _pointer(home, k, f, s))
