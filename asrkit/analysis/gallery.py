"""The utterances of a page that can be heard and seen: which ones, and within which size."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asrkit.analysis.decodings import Decoding
from asrkit.analysis.media import Speech, audio_uri, posteriors, spectrogram_uri
from asrkit.analysis.run import Run, stamp
from asrkit.data.batch import SAMPLE_RATE
from asrkit.errors import AsrkitError
from asrkit.inference.recogniser import Recogniser


class Cache:
    """What is dear to make, kept from one writing of a watched page to the next."""

    def __init__(self) -> None:
        self._values: dict[Hashable, Any] = {}
        self._used: set[Hashable] = set()

    def get(self, key: Hashable, make: Any) -> Any:
        """Return the value of a key, made if it is new; an AsrkitError is kept and raised again."""
        self._used.add(key)
        if key not in self._values:
            try:
                self._values[key] = make()
            except AsrkitError as error:
                self._values[key] = error
        value = self._values[key]
        if isinstance(value, AsrkitError):
            raise value
        return value

    def sweep(self) -> None:
        """Forget what was not asked for since the last sweep."""
        self._values = {key: value for key, value in self._values.items() if key in self._used}
        self._used = set()


@dataclass
class Gallery:
    """Media of one page."""

    cache: Cache
    utterances: int
    """Utterances with audio for each decoding, at most."""
    device: str
    """Where posteriors are computed."""
    media: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    """Audio, spectrogram and seconds by (element id of the set's texts, utterance id)."""

    def speech(self, run: Run, name: str) -> Speech:
        """Return the prepared set that an experiment's data folder holds.

        Raises:
            AsrkitError: if it is not there.
        """
        folder = set_folder(run, name)
        speech: Speech = self.cache.get(("speech", stamp(folder / "set.json")), lambda: Speech.open(folder))
        return speech

    def add(self, run: Run, decoding: Decoding, texts: str, budget: int) -> tuple[dict[str, dict[str, Any]], str]:
        """Embed the worst utterances of a decoding.

        Args:
            run: the experiment that made it.
            decoding: its references, hypotheses and errors.
            texts: element id of the set's texts; decodings that share them share media.
            budget: bytes that may be added.

        Returns:
            The CTC posteriors by utterance id; and a sentence on what could not be embedded, or an empty one.
        """
        shown: dict[str, dict[str, Any]] = {}
        wanted = decoding.worst[: self.utterances]
        try:
            speech = self.speech(run, decoding.result.set)
        except AsrkitError as error:
            return {}, f"No audio: {error}"
        failures: list[str] = []
        pictures = ""
        for number, utterance_id in enumerate(wanted):
            try:
                media = self._media(speech, utterance_id)
                size = sum(len(media[part]) for part in ("audio", "spectrogram"))
                if (texts, utterance_id) not in self.media:
                    if size > budget:
                        failures.append(f"{len(wanted) - number} utterances would make the page too large")
                        break
                    budget -= size
                    self.media[texts, utterance_id] = media
            except AsrkitError as error:
                failures.append(str(error))
                continue
            try:
                shown[utterance_id] = self._posteriors(run, speech, utterance_id)
            except AsrkitError as error:
                pictures = f"No posteriors: {error}."
        notes = (
            [f"{len(failures)} utterances have no audio here, the first because: {failures[0]}."] if failures else []
        )
        return shown, " ".join([*notes, pictures]).strip()

    def _media(self, speech: Speech, utterance_id: str) -> dict[str, Any]:
        def make() -> dict[str, Any]:
            wave = speech.wave(utterance_id)
            seconds = round(len(wave) / SAMPLE_RATE, 3)
            return {"audio": audio_uri(wave), "spectrogram": spectrogram_uri(wave), "seconds": seconds}

        media: dict[str, Any] = self.cache.get(("media", stamp(speech.index.dir / "set.json"), utterance_id), make)
        return media

    def _posteriors(self, run: Run, speech: Speech, utterance_id: str) -> dict[str, Any]:
        best = stamp(run.folder / "checkpoints" / "best")
        weights = best if best[1] else stamp(run.folder / "checkpoints" / "last")

        def load() -> Recogniser:
            return Recogniser(run.folder, device=self.device, precision="fp32")

        def make() -> dict[str, Any]:
            recogniser = self.cache.get(("model", weights), load)
            return posteriors(recogniser, utterance_id, speech.wave(utterance_id))

        key = ("posteriors", weights, stamp(speech.index.dir / "set.json"), utterance_id)
        found: dict[str, Any] = self.cache.get(key, make)
        return found


def set_folder(run: Run, name: str) -> Path:
    """Return where an experiment's config says that a prepared set is."""
    data = run.config.get("data")
    return Path(str(data.get("dir", "data") if isinstance(data, dict) else "data")) / name
