"""How alike the layers of two trained encoders are: symmetrised PWCCA over the frames of prepared sets.

Both models run in evaluation mode, unmasked, over the same batches; padded frames are never looked at. Layer 0 is what
enters the blocks, layer i what leaves the i-th block (under pre-norm, before the norm behind the last).

Source: the analysis with which Zhu et al. 2022 (arXiv 2110.04484) compare pre-trained with fine-tuned models.
Shapes: N batch, T frames, C channels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from asrkit.analysis.pwcca import CUT_OFF, Comparison, Moments, compare
from asrkit.core.method import Method
from asrkit.data.batch import Batch
from asrkit.data.index import SetIndex
from asrkit.data.stream import evaluation_batches
from asrkit.errors import AsrkitError
from asrkit.files import write_text
from asrkit.nn.encoder import Encoder
from asrkit.training.engine import autocast, choose_device, choose_precision
from asrkit.training.experiment import open_experiment

FILE = "similarity.json"
"""``{"pairs": [Similarity, …]}``; the report draws it where it lies in an experiment or one folder below."""

NOISY = 0.25
"""Above this level of unrelated features (`pwcca.noise_level`) a comparison says little."""


@dataclass(frozen=True)
class Similarity:
    """Two experiments, layer by layer."""

    name: str
    """What the pair is called."""
    a: str
    """The first experiment's folder."""
    b: str
    """The second's."""
    a_update: int
    """The update whose weights were compared."""
    b_update: int
    """Likewise."""
    corpus: str
    """What the sets are from."""
    sets: tuple[str, ...]
    """The sets."""
    frames: int
    """Frames compared."""
    cut_off: float
    """See `pwcca.CUT_OFF`."""
    layers: tuple[str, ...]
    """The layers' numbers; ``3:6`` for layer 3 of a against layer 6 of b."""
    pwcca: tuple[float, ...]
    """Symmetrised PWCCA of each."""
    a_to_b: tuple[float, ...]
    """Weighted by a's directions."""
    b_to_a: tuple[float, ...]
    """Weighted by b's."""
    noise: tuple[float, ...]
    """What unrelated features would give over so many independent frames."""


@dataclass(frozen=True)
class Side:
    """One of the two experiments."""

    folder: Path
    """The experiment."""
    checkpoint: str = "best"
    """best or last."""


@dataclass(frozen=True)
class SimilarityConfig:
    """What is compared, and how."""

    data_dir: Path
    """Prepared data."""
    sets: tuple[str, ...]
    """Sets of it; transcripts are not needed."""
    layers: tuple[tuple[int, int], ...] = ()
    """(layer of a, layer of b); none for all like-numbered ones."""
    cut_off: float = CUT_OFF
    """See `pwcca.CUT_OFF`."""
    device: str = "auto"
    """Where the encoders run."""
    precision: str = "fp32"
    """Rounding shows as directions of its own, so that less than fp32 is seldom wise."""

    def __post_init__(self) -> None:
        if not self.sets:
            raise AsrkitError("no speech to compare on", mend="name sets: --sets dev-clean")
        if not 0 < self.cut_off < 1:
            raise AsrkitError(f"--cut-off is {self.cut_off:g}", mend="above 0 and below 1")


class _Model:
    """A trained encoder."""

    def __init__(self, side: Side, device: torch.device) -> None:
        self.folder = side.folder
        experiment = open_experiment(side.folder)
        config = experiment.config
        self.data = config.data
        # A frame's features must not depend on what it is padded with.
        exact = replace(config, encoder=replace(config.encoder, padding="exact"))
        method, self.update = replace(experiment, config=exact).method(side.checkpoint)
        self.method: Method = method.to(device).eval()
        self.encoder: Encoder = method.encoder

    def layers(self, batch: Batch) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """Return the blocks' input and each block's output (N, T, C), and the frames of each utterance."""
        encoded = self.method.encode(batch, keep_layers=True)
        assert encoded.layers is not None
        return encoded.layers, encoded.host_lengths


def compare_experiments(
    name: str, a: Side, b: Side, config: SimilarityConfig, console: Console | None = None
) -> Similarity:
    """Compare two experiments; one pass over the sets, in memory that does not depend on their length.

    Args:
        name: what to call the pair.
        a: an experiment.
        b: another, or another checkpoint of it.
        config: sets, layers and precision.
        console: shows progress.

    Raises:
        AsrkitError: for what is no experiment or no set, models whose frames do not fall together or whose layers do not
            pair off, and too little speech.
    """
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    indices = [SetIndex.open(config.data_dir / each) for each in dict.fromkeys(config.sets)]
    first, second = _Model(a, device), _Model(b, device)
    _check_frames(first, second)
    layers = _check_layers(first, second, config.layers)
    moments = [Moments(first.encoder.dim, second.encoder.dim, device) for _ in layers]
    with Progress(console=console or Console(quiet=True), transient=True) as progress:
        task = progress.add_task(name, total=sum(len(index) for index in indices))
        for batch in evaluation_batches(indices, None, first.data, device=device):
            with torch.inference_mode(), autocast(device, precision):
                (ours, our_frames), (theirs, their_frames) = first.layers(batch), second.layers(batch)
            # Frontends that round differently give an utterance a last frame more or less.
            frames = [min(pair) for pair in zip(our_frames, their_frames, strict=True)]
            for (one, other), gathered in zip(layers, moments, strict=True):
                gathered.add(_valid(ours[one], frames), _valid(theirs[other], frames))
            progress.advance(task, len(batch.ids))
    labels = [str(one) if one == other else f"{one}:{other}" for one, other in layers]
    found = [_compare(label, each, config.cut_off) for label, each in zip(labels, moments, strict=True)]
    return Similarity(
        name=name,
        a=str(a.folder),
        b=str(b.folder),
        a_update=first.update,
        b_update=second.update,
        corpus="+".join(dict.fromkeys(str(index.info.get("corpus", "")) for index in indices)),
        sets=tuple(index.name for index in indices),
        frames=moments[0].frames,
        cut_off=config.cut_off,
        layers=tuple(labels),
        pwcca=tuple(each.pwcca for each in found),
        a_to_b=tuple(each.x_to_y for each in found),
        b_to_a=tuple(each.y_to_x for each in found),
        noise=tuple(each.noise for each in found),
    )


def _compare(label: str, moments: Moments, cut_off: float) -> Comparison:
    try:
        return compare(moments, cut_off)
    except AsrkitError as error:
        raise AsrkitError(str(error), where=f"layer {label}") from None


def _valid(features: Tensor, frames: Sequence[int]) -> Tensor:
    """Return the valid frames of features (N, T, C), one utterance after the other."""
    return torch.cat([row[:count] for row, count in zip(features, frames, strict=True)])


def _check_frames(a: _Model, b: _Model) -> None:
    if a.encoder.frame_rate != b.encoder.frame_rate:
        rates = f"{a.encoder.frame_rate:g} per second in {a.folder}, {b.encoder.frame_rate:g} in {b.folder}"
        raise AsrkitError(f"the models' frames do not fall together: {rates}", mend="compare models of one frame rate")


def _check_layers(a: _Model, b: _Model, asked: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    depths = a.encoder.config.layers, b.encoder.config.layers
    said = f"{a.folder} has {depths[0]} blocks, {b.folder} has {depths[1]}"
    if not asked:
        if depths[0] != depths[1]:
            chosen = f"{min(1, *depths)}:{min(1, *depths)} {depths[0]}:{depths[1]}"
            raise AsrkitError(said, mend=f"say which layers are to be compared, such as --layers {chosen}")
        return [(layer, layer) for layer in range(depths[0] + 1)]
    for pair in asked:
        if any(not 0 <= layer <= depth for layer, depth in zip(pair, depths, strict=True)):
            raise AsrkitError(f"there is no layer {pair[0]}:{pair[1]}: {said}", mend="0 is the input of the blocks")
    return list(dict.fromkeys(asked))


def write_similarities(path: Path, pairs: Sequence[Similarity]) -> None:
    """Write pairs as `FILE`, atomically."""
    write_text(path, json.dumps({"pairs": [asdict(pair) for pair in pairs]}, indent=1) + "\n")


def read_similarities(path: Path) -> list[Similarity]:
    """Read what `write_similarities` wrote.

    Raises:
        AsrkitError: if the file cannot be read or is none of that kind.
    """
    try:
        return [_parse(pair) for pair in json.loads(path.read_text(encoding="utf-8"))["pairs"]]
    except OSError as error:
        raise AsrkitError(f"cannot be read: {error.strerror}", where=path) from None
    except (ValueError, KeyError, TypeError):
        raise AsrkitError("not a file of `asrkit similarity`", where=path, mend=f"give a {FILE}") from None


def _parse(stored: dict[str, Any]) -> Similarity:
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in stored.items()}
    pair = Similarity(**values)
    rates = (*pair.pwcca, *pair.a_to_b, *pair.b_to_a, *pair.noise)
    lengths = {len(each) for each in (pair.layers, pair.pwcca, pair.a_to_b, pair.b_to_a, pair.noise)}
    if len(lengths) != 1 or not all(0 <= rate <= 1 for rate in rates):
        raise ValueError
    return pair
