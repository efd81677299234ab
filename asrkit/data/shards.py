"""Where an utterance's audio lies in a shard: a tar file, here or behind a URL, of which a member is read by itself.

The manifest of a set in shards names for each utterance the shard, the place of its bytes in it and their checksum. So
utterances are read in any order, one range of bytes each, the epoch plan is that of the same set in files, and bytes
that are not those that were written are never taken for audio.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from pathlib import Path

from asrkit.data.remote import is_url, read_range

SHARDS = "shards"
"""The folder of shards in a set's own folder."""


@dataclass(frozen=True)
class Member:
    """A member of a shard."""

    shard: str
    """The tar file: a path (a relative one starts from the set's folder) or a URL."""
    offset: int
    """Where the member's content begins, in bytes."""
    size: int
    """Its bytes."""
    checksum: int
    """`checksum` of the utterance's id and these bytes."""

    def __str__(self) -> str:
        return f"{self.shard}#{self.offset}+{self.size}:{self.checksum:08x}"

    @classmethod
    def parse(cls, text: str) -> Member:
        """Return what ``str`` gave; raises ValueError for anything else."""
        found = re.fullmatch(r"(.+)#(\d{1,18})\+(\d{1,12}):([0-9a-f]{8})", text)
        if found is None:
            raise ValueError(f"not a place in a shard: {text[:100]}")
        return cls(found[1], int(found[2]), int(found[3]), int(found[4], 16))


def locate(set_dir: Path, member: str) -> str:
    """Return the place of a member with its shard's path made independent of the set's folder."""
    found = Member.parse(member)
    shard = found.shard if is_url(found.shard) else str(set_dir / found.shard)
    return str(Member(shard, found.offset, found.size, found.checksum))


def checksum(utterance: str, data: bytes) -> int:
    """Return the CRC-32 of an utterance's id and its bytes: those of another utterance are wrong too."""
    return zlib.crc32(data, zlib.crc32(utterance.encode()))


def read_member(member: str, utterance: str) -> bytes:
    """Return the content of an utterance's member.

    Raises:
        AsrkitError: if a URL's protocol lacks a package.
        OSError: if the shard cannot be read.
        ValueError: if its bytes are not those that were written.
    """
    found = Member.parse(member)
    data = read_range(found.shard, found.offset, found.size)
    if len(data) < found.size:
        raise ValueError(f"the shard {found.shard} ends before byte {found.offset + found.size}")
    if checksum(utterance, data) != found.checksum:
        raise ValueError(f"the shard {found.shard} holds other bytes at {found.offset} than were written for it")
    return data
