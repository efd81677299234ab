"""The speakers of the synthetic corpus: how a voice is drawn, and how espeak-ng's samples become a recording of it.

Shapes: S samples, F frequency bins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from asrkit.data.batch import SAMPLE_RATE
from asrkit.data.espeak import Synthesiser, variants

ACCENTS = (
    "en-us",
    "en-us-nyc",
    "en",
    "en-gb-x-rp",
    "en-gb-scotland",
    "en-gb-x-gbclan",
    "en-gb-x-gbcwmd",
    "en-029",
)
# Whispers, machines and caricatures, which a listener would not take for a reader.
_UNNATURAL = ("whisper", "robo", "demonic", "croak", "tweaky", "fast")
_MEASURE = "the last train from boston arrives on monday morning"
_USUAL = 165.0  # words per minute


@dataclass(frozen=True)
class Voice:
    """A speaker with a channel: everything about a recording but its words."""

    accent: str
    """espeak-ng's language."""
    variant: str
    """espeak-ng's voice variant."""
    sex: str
    """F, M, or - where the variant does not say."""
    rate: float
    """Characters per second, spaces included."""
    pitch: float
    """0 to 99, 50 being the variant's own."""
    pitch_range: float
    """0 to 99: from monotone to lively."""
    tract: float
    """Length of the vocal tract relative to the variant's: divides all frequencies."""
    tilt: float
    """Slope of the channel's spectrum in dB per octave around 1 kHz."""
    bump_hz: float
    """Centre of the channel's one resonance."""
    bump_db: float
    """Its gain."""
    level_db: float
    """Loudness of the speech in dB relative to full scale."""
    snr_db: float
    """Ratio of speech to background noise."""
    noise_slope: float
    """Exponent of the noise's spectrum: 0 white, 1 pink."""


def natural_variants() -> dict[str, str]:
    """Return espeak-ng's variants that sound like people, with their sex."""
    return {name: sex for name, sex in variants().items() if not any(odd in name.lower() for odd in _UNNATURAL)}


def draw_voice(
    generator: np.random.Generator,
    accent: str,
    variant: str,
    sex: str,
    rates: tuple[float, float],
    snr_db: tuple[float, float] = (20.0, 40.0),
) -> Voice:
    """Draw what accent and variant leave open."""
    return Voice(
        accent=accent,
        variant=variant,
        sex=sex,
        rate=generator.uniform(*rates),
        pitch=generator.uniform(25, 75),
        pitch_range=generator.uniform(30, 80),
        tract=generator.uniform(0.92, 1.08),
        tilt=generator.uniform(-2, 2),
        bump_hz=1000 * 2 ** generator.uniform(-2, 2),
        bump_db=generator.uniform(-5, 5),
        level_db=generator.uniform(-28, -20),
        snr_db=generator.uniform(*snr_db),
        noise_slope=generator.uniform(0, 1),
    )


class Reader:
    """A voice that is open for recording; a context manager, one per process at a time."""

    def __init__(self, voice: Voice, *, seed: int) -> None:
        self.voice = voice
        self._speech = Synthesiser(voice.accent, voice.variant, seed=seed)
        # The same words per minute are half as fast again in one variant as in another: measure it.
        heard = len(_trim(self._speech.speak(_MEASURE, rate=_USUAL))) / self._speech.sample_rate
        self._rate = _USUAL * voice.rate * heard / len(_MEASURE)

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._speech.close()

    def record(self, text: str, generator: np.random.Generator) -> np.ndarray:
        """Return ``text`` as the voice says it this time: float32 of shape (S,) at 16 kHz, within [-1, 1].

        Tempo, pitch, loudness and the silence around the words vary a little from one recording to the next.
        """
        voice = self.voice
        raw = self._speech.speak(
            text.lower(),  # espeak-ng spells out some words in capitals
            rate=self._rate * voice.tract * generator.uniform(0.94, 1.06),
            pitch=voice.pitch + generator.uniform(-4, 4),
            pitch_range=voice.pitch_range,
        )
        clean = _through_channel(_trim(raw / 32768), voice, self._speech.sample_rate)
        level = 10 ** ((voice.level_db + generator.uniform(-2, 2)) / 20)
        clean *= level / np.sqrt(np.mean(clean**2))
        before, after = (generator.uniform(0.05, 0.25, 2) * SAMPLE_RATE).astype(int)
        wave = np.pad(clean, (before, after))
        wave += _noise(len(wave), voice.noise_slope, generator) * level * 10 ** (-voice.snr_db / 20)
        wave *= min(1.0, 0.95 / np.abs(wave).max())
        return wave.astype(np.float32)


def _trim(wave: np.ndarray) -> np.ndarray:
    """Cut the silence off both ends of (S,)."""
    magnitude = np.abs(wave.astype(np.float64))
    loud = np.flatnonzero(magnitude > 0.01 * magnitude.max())
    return wave[loud[0] : loud[-1] + 1]


def _through_channel(wave: np.ndarray, voice: Voice, sample_rate: int) -> np.ndarray:
    """Resample (S,) to 16 kHz, stretched by the vocal tract, and filter it, all in one Fourier transform."""
    ratio = SAMPLE_RATE / sample_rate * voice.tract
    # A zero pad keeps the transform's wrap-around out of the words; the round length keeps it fast.
    length = -(-int(len(wave) * ratio + 400) // 1024) * 1024
    spectrum = np.fft.rfft(wave, round(length / ratio))[: length // 2 + 1]
    hertz = np.clip(np.fft.rfftfreq(length, 1 / SAMPLE_RATE), 60, None)
    octaves = np.log2(hertz / 1000)
    decibels = voice.tilt * octaves + voice.bump_db * np.exp(-(((octaves - np.log2(voice.bump_hz / 1000)) / 0.5) ** 2))
    return np.fft.irfft(ratio * spectrum * 10 ** (decibels / 20), length)[: int(len(wave) * ratio)]


def _noise(length: int, slope: float, generator: np.random.Generator) -> np.ndarray:
    """Return noise of shape (S,) and unit power whose power spectrum falls with frequency to the power of ``slope``."""
    size = -(-length // 1024) * 1024
    spectrum = np.fft.rfft(generator.standard_normal(size))
    spectrum *= np.clip(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), 60, None) ** (-slope / 2)
    noise = np.fft.irfft(spectrum, size)[:length]
    return noise / np.sqrt(np.mean(noise**2))
