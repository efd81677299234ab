"""espeak-ng through ctypes: text to samples and phonemes, with the library that the wheel ``espeakng-loader`` carries.

Shapes: S samples.

The library keeps its breath and flutter state in static variables that no call resets, so a ``Synthesiser`` loads it
anew and unloads it on closing: what a voice says depends on its settings and on what it has said since it was opened,
not on what other voices said before. One Synthesiser can be open in a process at a time.
"""

from __future__ import annotations

import ctypes
import importlib
import re
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from asrkit.errors import AsrkitError, nearest

_SYNCHRONOUS = 2  # espeak_AUDIO_OUTPUT: samples go to the callback, and espeak_Synth returns after the last of them
_DONT_EXIT = 1 << 15
_UTF8 = 1
_IPA = 2
_SEPARATOR = "_"
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_LONGEST_HOME = 150  # from about 160 bytes on, espeak-ng ignores the path of its data

_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def _loader() -> Any:
    try:
        return importlib.import_module("espeakng_loader")
    except ImportError as error:
        raise AsrkitError("the speech synthesiser espeak-ng is missing", mend='pip install "asrkit[mini]"') from error


@cache
def variants() -> dict[str, str]:
    """Return espeak-ng's voice variants by name, each with "F", "M" or "-" as its sex, in alphabetical order."""
    found = {}
    for file in sorted((Path(_loader().get_data_path()) / "voices" / "!v").iterdir()):
        words = file.read_text(encoding="utf-8", errors="replace").split()
        gender = words[words.index("gender") + 1] if "gender" in words else ""
        found[file.name] = {"female": "F", "male": "M"}.get(gender, "-")
    return found


class Synthesiser:
    """A voice that is open for speaking.

    ``accent`` is a language of espeak-ng such as ``en-us``; ``variant`` one of ``variants()``. Raises AsrkitError when
    the package or the voice is missing, or another Synthesiser of this process is open.
    """

    _open = False

    def __init__(self, accent: str, variant: str, *, seed: int = 0) -> None:
        if Synthesiser._open:
            raise AsrkitError("espeak-ng speaks with one voice at a time", mend="close the other Synthesiser first")
        loader = _loader()
        # espeak-ng speaks without a variant that it does not find.
        if variant not in variants():
            raise AsrkitError(f"espeak-ng has no variant '{variant}'", mend=nearest(variant, variants()))
        try:
            self._library: Any = ctypes.CDLL(loader.get_library_path())
        except OSError as error:
            raise AsrkitError(f"espeak-ng could not be loaded: {error}") from error
        self._library.espeak_TextToPhonemes.restype = ctypes.c_char_p
        self._chunks: list[bytes] = []
        self._callback = _Callback(self._take)
        self._shortcut: tempfile.TemporaryDirectory[str] | None = None
        Synthesiser._open = True
        self.sample_rate: int = self._library.espeak_Initialize(_SYNCHRONOUS, 0, self._home(loader), _DONT_EXIT)
        if self.sample_rate <= 0:
            self.close()
            raise AsrkitError("espeak-ng could not read its data", where=loader.get_data_path())
        self._library.espeak_SetSynthCallback(self._callback)
        # Breath draws from espeak-ng's own generator, which is seeded with the time of day, Klatt's voices from the C
        # library's.
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        if sys.platform != "win32":
            ctypes.CDLL(None).srand(ctypes.c_uint(seed))
        if self._library.espeak_SetVoiceByName(f"{accent}+{variant}".encode()) != 0:
            self.close()
            raise AsrkitError(f"espeak-ng has no accent '{accent}'", mend="for instance en-us or en-gb-scotland")

    def _home(self, loader: Any) -> bytes:
        home = Path(loader.get_data_path())
        if len(str(home).encode()) > _LONGEST_HOME:
            self._shortcut = tempfile.TemporaryDirectory(prefix="espeak")
            link = Path(self._shortcut.name) / home.name
            link.symlink_to(home, target_is_directory=True)
            home = link
        return str(home).encode()

    def _take(self, samples: Any, count: int, _events: Any) -> int:
        if samples and count > 0:
            self._chunks.append(ctypes.string_at(samples, 2 * count))
        return 0

    def speak(self, text: str, *, rate: float = 165, pitch: float = 50, pitch_range: float = 50) -> np.ndarray:
        """Return the samples of ``text``, int16 of shape (S,), at ``sample_rate``.

        ``rate`` is in words per minute; ``pitch`` and ``pitch_range`` go from 0 to 99, 50 being the variant's own.
        """
        # At the default volume of 100 several variants clip inside espeak-ng.
        for parameter, value in ((_RATE, rate), (_VOLUME, 40), (_PITCH, pitch), (_RANGE, pitch_range)):
            self._library.espeak_SetParameter(parameter, round(value), 0)
        self._chunks.clear()
        raw = text.encode() + b"\0"
        if self._library.espeak_Synth(raw, ctypes.c_size_t(len(raw)), 0, 1, 0, _UTF8, None, None) != 0:
            raise AsrkitError(f"espeak-ng could not speak '{text}'")
        return np.frombuffer(b"".join(self._chunks), dtype=np.int16)

    def phonemes(self, text: str) -> str:
        """Return how the voice's accent pronounces ``text``, in the International Phonetic Alphabet."""
        return self._transcribe(text, _IPA)

    def phones(self, word: str) -> tuple[str, ...]:
        """Return the phones of a word, without stress; none where there is nothing to say."""
        spoken = re.sub(r"\([\w-]+\)|[ˈˌ]", "", self._transcribe(word, _IPA | ord(_SEPARATOR) << 8))
        return tuple(phone for part in spoken.split() for phone in part.split(_SEPARATOR) if phone)

    def _transcribe(self, text: str, mode: int) -> str:
        # A call takes one clause and moves the pointer behind it; behind the last one it is null.
        raw, parts = ctypes.c_char_p(text.encode()), []
        while raw.value:
            parts.append(self._library.espeak_TextToPhonemes(ctypes.byref(raw), _UTF8, mode).decode())
        return " ".join(parts)

    def close(self) -> None:
        """Unload the library; a closed Synthesiser cannot speak."""
        if self._library is None:
            return
        self._library.espeak_Terminate()
        if sys.platform != "win32":
            ctypes.CDLL(None).dlclose(ctypes.c_void_p(self._library._handle))
        self._library = None
        if self._shortcut is not None:
            self._shortcut.cleanup()
        Synthesiser._open = False

    def __enter__(self) -> Synthesiser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
