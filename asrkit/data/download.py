"""Fetch LibriSpeech (OpenSLR 12), Libri-light's label-limited folds and LibriSpeech's language models (OpenSLR 11).

``python -m asrkit.data.download --corpus-dir DIR dev-clean 4-gram …`` leaves DIR/LibriSpeech/dev-clean,
DIR/librispeech_finetuning or DIR/lm/4-gram.arpa.gz. An interrupted download goes on where it stopped; an archive is
unpacked only if its checksum is right, and a file or folder has its final name only when it is complete.

Checksums of speech are those that torchaudio publishes, in ``torchaudio.datasets.librispeech`` and
``librilight_limited``. OpenSLR gives none for the language models: those of the 3-gram, the 4-gram and the lexicon are what
RWTH Aachen's published recipes check (rwth-i6/i6_experiments, common/datasets/librispeech), that of the small 3-gram is
from a single public recipe that builds on theirs.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import os
import re
import shutil
import sys
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, cast

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from asrkit.errors import AsrkitError, nearest

_OPENSLR = "https://www.openslr.org/resources/12/"
_OPENSLR_TEXT = "https://www.openslr.org/resources/11/"
_LIMITED = "https://dl.fbaipublicfiles.com/librilight/data/librispeech_finetuning.tgz"
_BLOCK = 1 << 20
_ATTEMPTS = 5
_CALLS = 2  # attempts at a server that has not answered yet: without a network there is no use in waiting
_PATIENCE = 20.0  # seconds that a server may be silent
_UNPACKED_SHARE = 1.1  # FLAC does not shrink in an archive: unpacked it takes about as much space again

Advance = Callable[[int, int | None], None]
"""Told (bytes there, bytes in all or None where the server does not say)."""


@dataclass(frozen=True)
class Archive:
    """A file on the network, and what it brings: a tar file a folder, any other itself."""

    url: str
    """Where it is."""
    sha256: str
    """Checksum of the file, hexadecimal."""
    place: str
    """The folder that it holds or the file that it is, below the corpus folder: present exactly when it is complete."""

    @property
    def file_name(self) -> str:
        """The archive's own name."""
        return self.url.rpartition("/")[2]

    @property
    def packed(self) -> bool:
        """Whether it is a tar file."""
        return self.file_name.endswith((".tar.gz", ".tgz"))


def _openslr(part: str, sha256: str) -> Archive:
    return Archive(f"{_OPENSLR}{part}.tar.gz", sha256, f"LibriSpeech/{part}")


def _text(file_name: str, sha256: str) -> Archive:
    return Archive(f"{_OPENSLR_TEXT}{file_name}", sha256, f"lm/{file_name}")


ARCHIVES = {
    "dev-clean": _openslr("dev-clean", "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3"),
    "dev-other": _openslr("dev-other", "12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365"),
    "test-clean": _openslr("test-clean", "39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23"),
    "test-other": _openslr("test-other", "d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29"),
    "train-clean-100": _openslr("train-clean-100", "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2"),
    "train-clean-360": _openslr("train-clean-360", "146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf"),
    "train-other-500": _openslr("train-other-500", "ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2"),
    "librispeech_finetuning": Archive(
        _LIMITED, "5d1efdc777b548194d7e09ba89126e2188026df9fd57aa57eb14408d2b2342af", "librispeech_finetuning"
    ),
    "4-gram": _text("4-gram.arpa.gz", "f2b2d1507637ddf459d3579159f7e8099ed7d77452ff1059aeeeaea33d274613"),
    "3-gram": _text("3-gram.arpa.gz", "263649573475c2991d3e755eb4e690c9d2656f2b3283a1eb589e1e4e174bf874"),
    "3-gram-small": _text(
        "3-gram.pruned.1e-7.arpa.gz", "71dd880667cb6ea3942bb1982988c91fb1208839a21911eeec7e31c857c4bdfb"
    ),
    "lexicon": _text("librispeech-lexicon.txt", "d722bc29908cd338ae738edd70f61826a6fca29aaa704a9493f0006773f79d71"),
}
"""What can be fetched, by name."""


def download(archive: Archive, corpus_dir: Path, *, advance: Advance | None = None, pause: float = 2.0) -> bool:
    """Bring ``archive``'s folder or file into ``corpus_dir``; return False where it was there already.

    A tar file is removed once it is unpacked. ``pause`` is the wait in seconds before a broken connection is taken up
    again; it doubles with each failure in a row.

    Raises:
        AsrkitError: when the server cannot be reached, the disk is too small, or the file is not what it should be.
    """
    place = corpus_dir / archive.place
    if place.exists():
        return False
    corpus_dir.mkdir(parents=True, exist_ok=True)
    path = fetch(archive, corpus_dir, advance=advance, pause=pause)
    if archive.packed:
        unpack(path, corpus_dir, archive.place)
        path.unlink()
    else:
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, place)
    return True


def fetch(archive: Archive, folder: Path, *, advance: Advance | None = None, pause: float = 2.0) -> Path:
    """Download the file into ``folder``, going on from a part that is there, check it, and return its path.

    Raises:
        AsrkitError: see `download`.
    """
    path = folder / archive.file_name
    part = folder / f"{archive.file_name}.part"
    if path.is_file():
        if _sha256(path) == archive.sha256:
            return path
        os.replace(path, part)
    # What is there may be of another file; only a whole download tells, so a resumed one gets a second try.
    for _ in range(2 if part.is_file() else 1):
        _transfer(archive, part, advance or _silent, pause)
        if _sha256(part) == archive.sha256:
            os.replace(part, path)
            return path
        part.unlink()
    raise AsrkitError(
        "the file is damaged or has changed: its SHA-256 is not the published one",
        where=archive.url,
        mend="it was removed; run the command again",
    )


def _silent(done: int, total: int | None) -> None:
    """Tell nobody."""


def _transfer(archive: Archive, part: Path, advance: Advance, pause: float) -> None:
    """Append to ``part`` until it holds the whole file; broken connections are taken up again."""
    url, failures, reason, answered = archive.url, 0, "", False
    while failures < (_ATTEMPTS if answered else _CALLS):
        if failures:
            time.sleep(pause * 2 ** (failures - 1))
        before = _size(part)
        try:
            if _continue(archive, part, advance):
                return
            reason, answered = "the connection broke off", True
        except urllib.error.HTTPError as error:
            answered = True
            reason = f"the server answers {error.code} {error.reason}"
            if error.code < 500:
                raise AsrkitError(reason, where=url) from None
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        answered = answered or _size(part) > before
        failures = 1 if _size(part) > before else failures + 1
    raise AsrkitError(
        f"could not be fetched: {reason}",
        where=url,
        mend=f"check the network and run the command again, it goes on from there; or put the file into {part.parent}",
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _continue(archive: Archive, part: Path, advance: Advance) -> bool:
    """Ask for what comes behind the part and append it; return whether the file is whole."""
    size = _size(part)
    request = urllib.request.Request(archive.url, headers={"Range": f"bytes={size}-", "User-Agent": "asrkit"})
    try:
        response = urllib.request.urlopen(request, timeout=_PATIENCE)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        # Nothing comes behind: the part is whole, or longer than the file and then of another one.
        total = _total(error.headers.get("Content-Range"))
        if total == size:
            return True
        part.unlink(missing_ok=True)
        return False
    with response:
        if response.status == http.HTTPStatus.PARTIAL_CONTENT:
            total = _total(response.headers.get("Content-Range"))
            mode = "ab"
        else:
            length = response.headers.get("Content-Length")
            total = int(length) if length else None
            size, mode = 0, "wb"
        if total is not None:
            _check_disk(part.parent, total - size + (int(total * _UNPACKED_SHARE) if archive.packed else 0))
        with open(part, mode) as file:
            advance(size, total)
            while block := response.read(_BLOCK):
                file.write(block)
                size += len(block)
                advance(size, total)
    return total is None or size == total


def _total(content_range: str | None) -> int | None:
    """Return the file's size from a header like ``bytes 10-99/100``."""
    found = re.search(r"/(\d+)$", content_range or "")
    return int(found[1]) if found else None


def _check_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise AsrkitError(f"{needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free", where=folder)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def unpack(path: Path, corpus_dir: Path, folder: str) -> None:
    """Unpack a tar file beside its place and move what it brings there; ``folder`` comes last, in one step.

    Raises:
        AsrkitError: when the archive is damaged, would write outside its place, or does not hold ``folder``.
    """
    scratch = corpus_dir / f".{path.name}.{os.getpid()}.unpacking"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                target = scratch / _inside(member.name, path)
                if member.isdir():
                    target.mkdir(parents=True, exist_ok=True)
                elif member.isfile():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with open(target, "wb") as file:
                        shutil.copyfileobj(cast(IO[bytes], tar.extractfile(member)), file, _BLOCK)
        if not (scratch / folder).is_dir():
            raise AsrkitError(f"the archive holds no folder {folder}", where=path)
        (corpus_dir / folder).parent.mkdir(parents=True, exist_ok=True)
        # Each part of LibriSpeech brings the same README.TXT, SPEAKERS.TXT and so on beside its folder.
        for extra in (scratch / folder).parent.iterdir():
            if extra.is_file():
                os.replace(extra, (corpus_dir / folder).parent / extra.name)
        os.replace(scratch / folder, corpus_dir / folder)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise AsrkitError(f"cannot be unpacked: {error}", where=path) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _inside(name: str, path: Path) -> PurePosixPath:
    """Return a member's name, or refuse one that leads out of the archive's place."""
    member = PurePosixPath(name)
    if member.is_absolute() or ".." in member.parts:
        raise AsrkitError(f"the archive would write to {name}", where=path)
    return member


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch what the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m asrkit.data.download",
        description=f"Fetch parts of LibriSpeech and language models made for it: {', '.join(ARCHIVES)}.",
        epilog="Example: python -m asrkit.data.download --corpus-dir corpora/librispeech dev-clean test-clean",
    )
    parser.add_argument("--corpus-dir", type=Path, required=True, help="gets LibriSpeech/ and the rest")
    parser.add_argument("parts", nargs="+", metavar="PART")
    options = parser.parse_args(arguments)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    try:
        for part in options.parts:
            if part not in ARCHIVES:
                raise AsrkitError(f"unknown part '{part}'", mend=nearest(part, ARCHIVES))
        with Progress(*columns) as progress:
            for part in options.parts:
                task = progress.add_task(part, total=None)

                def advance(done: int, total: int | None, task: TaskID = task) -> None:
                    progress.update(task, completed=done, total=total)

                if not download(ARCHIVES[part], options.corpus_dir, advance=advance):
                    progress.update(task, description=f"{part} is there", total=1, completed=1)
    except AsrkitError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{error.filename or options.corpus_dir}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
