"""What an encoder is made of."""

from __future__ import annotations

from dataclasses import dataclass, field

from asrkit.errors import AsrkitError, nearest
from asrkit.nn.logmel import LogMelConfig
from asrkit.nn.waveform import WaveformConfig

FRONTENDS = ("waveform", "logmel")
BLOCKS = ("transformer", "conformer")
POSITIONS = ("conv", "rotary", "rotary-input", "relative", "shaw", "none")
PADDINGS = ("exact", "foreign")
CONV_NORMS = ("layer", "batch")
OUTER_NORMS = ("none", "before", "after")


@dataclass
class EncoderConfig:
    """Frontend, blocks and regularisation of an encoder; the defaults are wav2vec 2.0 BASE."""

    frontend: str = "waveform"
    """waveform (wav2vec 2.0's convolutions) or logmel (mel filters and subsampling convolutions)."""
    waveform: WaveformConfig = field(default_factory=WaveformConfig)
    """The waveform frontend."""
    logmel: LogMelConfig = field(default_factory=LogMelConfig)
    """The log-mel frontend."""
    blocks: str = "transformer"
    """transformer or conformer."""
    layers: int = 12
    """Blocks in the stack."""
    dim: int = 768
    """Channels of the blocks."""
    ffn_dim: int = 3072
    """Inner channels of the feed-forward layers."""
    heads: int = 12
    """Attention heads; they divide dim."""
    pre_norm: bool = False
    """transformer: normalise before each sub-layer and once at the end (LARGE) rather than after each (BASE)."""
    positions: str = "conv"
    """conv (wav2vec 2.0), rotary, rotary-input (turned before the projections), relative (Transformer-XL), shaw or none."""
    position_reach: int = 0
    """positions=shaw: distances beyond as many frames share a vector; 0: as far as attention_block lets a frame look."""
    attention_block: int = 0
    """Frames attend within blocks of as many frames (Granite-speech: 200 of 20 ms), at linear cost; 0: to all frames."""
    conv_position_kernel: int = 128
    """positions=conv: frames that the convolution spans."""
    conv_position_groups: int = 16
    """positions=conv: groups of the convolution; they divide dim."""
    conv_position_layers: int = 1
    """positions=conv: 1, or as many as data2vec stacks, each with a layer norm in place of weight normalisation."""
    conv_kernel: int = 31
    """conformer: frames that the depthwise convolution spans, an odd number."""
    conv_norm: str = "layer"
    """conformer: normalisation after the depthwise convolution, layer (over channels) or batch (over valid frames)."""
    conv_bias: bool = True
    """conformer: biases in the convolution module (other toolkits' Conformers have none)."""
    outer_norm: str = "none"
    """conformer: one more layer norm, before the blocks (fairseq2), after them (fairseq, Hugging Face), or none."""
    dropout: float = 0.1
    """On the output of each sub-layer and on the blocks' input."""
    attention_dropout: float = 0.1
    """On attention weights."""
    activation_dropout: float = 0.0
    """On the inner activations of the feed-forward layers."""
    input_dropout: float = 0.1
    """On the projected features, before masking."""
    layer_drop: float = 0.05
    """Probability of skipping a block in training."""
    padding: str = "exact"
    """exact (a result never depends on padding), or foreign (as other toolkits treat it; for parity tests)."""
    checkpoint_activations: bool = False
    """Recompute each block in the backward pass: less memory, a third more time."""

    def __post_init__(self) -> None:
        for key, known in (
            ("frontend", FRONTENDS),
            ("blocks", BLOCKS),
            ("positions", POSITIONS),
            ("padding", PADDINGS),
            ("conv_norm", CONV_NORMS),
            ("outer_norm", OUTER_NORMS),
        ):
            value = getattr(self, key)
            if value not in known:
                raise AsrkitError(f"encoder.{key} is '{value}'", mend=nearest(value, known))
        sizes = ("dim", "ffn_dim", "heads", "conv_kernel")
        for key in (*sizes, "conv_position_kernel", "conv_position_groups", "conv_position_layers"):
            if getattr(self, key) < 1:
                raise AsrkitError(f"encoder.{key} is {getattr(self, key)}", mend="1 or more")
        for key in ("attention_block", "position_reach"):
            if getattr(self, key) < 0:
                raise AsrkitError(f"encoder.{key} is {getattr(self, key)}", mend="0 or more")
        if self.positions == "shaw" and not self.reach:
            raise AsrkitError(
                "encoder.positions is shaw, but there is no longest distance", mend="set encoder.position_reach"
            )
        if self.attention_block and self.position_reach >= self.attention_block:
            raise AsrkitError(
                f"encoder.position_reach is {self.position_reach}, but in blocks of encoder.attention_block = "
                f"{self.attention_block} no distance is beyond {self.attention_block - 1}",
                mend="lower it, or leave it out",
            )
        if self.position_reach and self.positions != "shaw":
            raise AsrkitError(f"encoder.position_reach is for encoder.positions: shaw, not {self.positions}")
        if self.layers < 0:
            raise AsrkitError(f"encoder.layers is {self.layers}", mend="0 or more")
        if self.dim % self.heads:
            raise AsrkitError(f"encoder.heads is {self.heads}, which does not divide encoder.dim = {self.dim}")
        if self.positions == "conv" and self.dim % self.conv_position_groups:
            raise AsrkitError(
                f"encoder.conv_position_groups is {self.conv_position_groups}, "
                f"which does not divide encoder.dim = {self.dim}"
            )
        if self.positions.startswith("rotary") and (self.dim // self.heads) % 2:
            raise AsrkitError(
                f"encoder.positions is {self.positions}, but encoder.dim / encoder.heads is odd", mend="make it even"
            )
        if self.positions == "relative" and self.dim % 2:
            raise AsrkitError("encoder.positions is relative, but encoder.dim is odd", mend="make it even")
        if self.blocks == "conformer" and self.conv_kernel % 2 == 0:
            raise AsrkitError(f"encoder.conv_kernel is {self.conv_kernel}", mend="an odd number")
        for key in ("dropout", "attention_dropout", "activation_dropout", "input_dropout", "layer_drop"):
            if not 0.0 <= getattr(self, key) < 1.0:
                raise AsrkitError(f"encoder.{key} is {getattr(self, key)}", mend="in [0, 1)")

    @property
    def reach(self) -> int:
        """The longest distance in frames that positions=shaw tells from longer ones; 0 for other positions."""
        if self.positions != "shaw":
            return 0
        return self.position_reach or max(0, self.attention_block - 1)
