"""The README of an exported model."""

from __future__ import annotations

from asrkit.interop.portable import Portable

_LOADING = """\
```python
import soundfile, torch
from transformers import {architecture}, {processor}

model = {architecture}.from_pretrained("{place}").eval()
processor = {processor}.from_pretrained("{place}")
wave, rate = soundfile.read("speech.flac", dtype="float32")  # mono, 16 kHz
inputs = processor(wave, sampling_rate=rate, return_tensors="pt")
with torch.inference_mode():
    {call}
```
"""

_BASE = """\
## Run it unpadded

The first convolution is normalised over time (as in wav2vec 2.0 BASE). transformers lets that normalisation run over
padding too, so that an utterance's result changes when it is padded in a batch. **Give this model one utterance at a
time, or batches of equal lengths.** asrkit leaves padding out of the normalisation, and any batch gives the same result.
"""

_NORMALISED = """\
Waves are normalised before anything else. transformers adds 1e-7 to the variance, this model was trained with {epsilon:g}:
the difference shows in very quiet recordings only.
"""


def model_card(model: Portable, architecture: str) -> str:
    """Return the card of a model that was exported for transformers."""
    call = "print(processor.batch_decode(model(**inputs).logits.argmax(-1)))"
    processor = "Wav2Vec2Processor"
    if model.units is None:
        call, processor = (
            "hidden = model(**inputs, output_hidden_states=True).hidden_states[-1]",
            "Wav2Vec2FeatureExtractor",
        )
    tag = "automatic-speech-recognition" if model.units is not None else "feature-extraction"
    waveform = model.encoder.waveform
    parts = [
        f"---\nlibrary_name: transformers\npipeline_tag: {tag}\ntags:\n- speech\n- asrkit\n---\n\n# {model.name}\n",
        f"Exported by asrkit as `{architecture}`; audio is mono at 16 kHz.\n",
        _LOADING.format(architecture=architecture, processor=processor, call=call, place="."),
    ]
    if waveform.norm == "group":
        parts.append(_BASE)
    if waveform.normalise and waveform.normalise_epsilon != 1e-7:
        parts.append(_NORMALISED.format(epsilon=waveform.normalise_epsilon))
    if model.encoder.blocks == "conformer":
        parts.append(
            "## Run it unpadded\n\ntransformers lets the convolutions of Conformer blocks see padded frames, so that results of\n"
            "padded batches differ a little. Give this model one utterance at a time, or batches of equal lengths.\n"
        )
    return "\n".join(parts)
