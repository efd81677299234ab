"""How much audio an MP3 holds, by its frames: what is said at its head may be a guess, or true of its first part only.

Source: ISO/IEC 11172-3 and 13818-3, section 2.4.1.3 (the header of a frame), layer III.
"""

from __future__ import annotations

import mmap
from pathlib import Path

_TAGS = (b"Xing", b"Info", b"VBRI")
"""What an encoder that knew the length has put into the first frame."""
_KBITS = {
    3: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_TAG_BYTES = 200
_EXTRA = 5 * 1152
"""Samples that frames may hold besides the audio: the tag's own frame, the encoder's delay, and what fills the last frame."""
_SLACK_SECONDS = 0.1


def told_wrong(path: Path | str, rate: int, told: int, decoded: int) -> str | None:
    """Return what is wrong with an MP3's length, None if nothing is.

    Args:
        path: the file.
        rate: its sample rate.
        told: samples by its head.
        decoded: samples that came out.
    """
    held, tagged = measure(path)
    if decoded < held - _EXTRA and decoded >= told - _SLACK_SECONDS * rate:
        return f"an MP3 of {held / rate:.1f} s whose head tells of {told / rate:.1f} s: convert it, to flac say"
    # Without a tag the length is an estimate, too long a one where the first frame has fewer bits than the others.
    if tagged and decoded < told - _SLACK_SECONDS * rate:
        return f"cut short: {decoded} of {told} samples"
    return None


def measure(path: Path | str) -> tuple[int, bool]:
    """Return the samples in an MP3's frames, and whether its first frame tells the length.

    Raises:
        OSError: if the file cannot be read.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        place, end, samples, tagged, last = 0, 0, 0, None, b""
        while 0 <= place <= len(data) - 4:
            header = data[place : place + 4]
            if header[:3] == b"ID3":
                sizes = zip(data[place + 6 : place + 10], (21, 14, 7, 0), strict=False)
                place += 10 + sum(byte << shift for byte, shift in sizes)
                continue
            size, held = _frame(header)
            following = data[place + size : place + size + 4]
            # What looks like a frame in the middle of something else, such as a picture, has none before it or behind it.
            before = _alike(header, last) if last else not following
            if not size or not ((place == end and before) or _alike(header, following)):
                place = data.find(b"\xff", place + 1)
                continue
            if tagged is None:
                first = data[place : place + _TAG_BYTES]
                tagged = any(tag in first for tag in _TAGS)
            samples += held
            place = end = place + size
            last = header
    return samples, bool(tagged)


def _alike(one: bytes, other: bytes) -> bool:
    """Whether two headers are of the same version, layer and sample rate."""
    return (
        len(other) == 4
        and one[:1] == other[:1]
        and one[1] & 0xFE == other[1] & 0xFE
        and one[2] & 0x0C == other[2] & 0x0C
    )


def _frame(header: bytes) -> tuple[int, int]:
    """Return a frame's bytes and samples, (0, 0) if this is no header of layer III."""
    version, layer = header[1] >> 3 & 3, header[1] >> 1 & 3
    bits, rate = header[2] >> 4, header[2] >> 2 & 3
    if header[0] != 0xFF or header[1] < 0xE0 or version == 1 or layer != 1 or bits in (0, 15) or rate == 3:
        return 0, 0
    samples = 1152 if version == 3 else 576
    kbits = _KBITS[3 if version == 3 else 2][bits]
    return samples // 8 * 1000 * kbits // _RATES[version][rate] + (header[2] >> 1 & 1), samples
