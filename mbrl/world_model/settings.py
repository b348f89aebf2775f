"""Settings of the world model; imports nothing heavy, so that checking a config is quick.

Encoders, codes and decoders come in kinds: a new one is a file with its class and one line in
`ENCODERS`, `CODES` or `decoders.settings.DECODERS`.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from mbrl.config.base import Settings
from mbrl.config.kinds import Kind, Kinds
from mbrl.world_model.decoders.settings import DECODERS, DecoderSettings, PixelCNNSettings
from mbrl.world_model.decoders.settings import FlowSettings as FlowSettings


class EncoderSettings(Settings):
    """The VAE's encoder: what all kinds have."""

    kind: str = Field(description="which encoder")


class NormalisedSettings(EncoderSettings):
    """Our encoder: frames minus what was expected of them, and normalised maps."""

    kind: Literal["normalised"] = Field("normalised", description="ours")
    channels: tuple[int, ...] = Field(
        (16, 32), description="maps of each conv; all but the first halve the image"
    )
    hidden: int = Field(128, ge=1, description="width of the dense layer before the code")
    norm: Literal["frame", "map", "none"] = Field(
        "frame",
        description="normalise after each conv: all maps of a frame together, or each map by "
        "itself, which brings out small objects; with none the code collapses",
    )
    deviation: float | None = Field(
        None,
        gt=0,
        description="standardise the code's raw parameters across frames, to this deviation at "
        "first; null: leave them as they are",
    )
    subtract_mean: bool = Field(True, description="encode the frame minus the running mean frame")
    pixel_floor: float | None = Field(
        None,
        gt=0,
        description="also divide each pixel by its running deviation, at least this (intensities "
        "are 0 to 1), so that what is seldom seen counts; null: do not",
    )
    subtract_past: bool = Field(
        False,
        description="encode the frame minus the mean of its sequence's frames before it (a moving "
        "mean from 16 on), so that the code leaves to the recurrent state what stays; needs "
        "subtract_mean, which is for first frames",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "NormalisedSettings":
        if self.subtract_past and not self.subtract_mean:
            raise ValueError("encoder.subtract_past: true needs encoder.subtract_mean: true")
        return self


class WorldModelsEncoderSettings(EncoderSettings):
    """The plain encoder of World Models (2018), for frames of 64 x 64."""

    kind: Literal["world_models"] = Field("world_models", description="that of 2018")


ENCODERS = Kinds(
    "normalised",
    {
        "normalised": Kind(NormalisedSettings, "mbrl.world_model.encoder:NormalisedEncoder"),
        "world_models": Kind(
            WorldModelsEncoderSettings, "mbrl.world_model.decoders.world_models:WorldModelsEncoder"
        ),
    },
)
"""All encoders by the name that `encoder.kind` gives."""


class CodeSettings(Settings):
    """The stochastic code z: what all kinds have."""

    kind: str = Field(description="which code")
    groups: int = Field(16, ge=1, description="variables of the code")


class CategoricalSettings(CodeSettings):
    """Groups of one-hot variables."""

    kind: Literal["categorical"] = Field("categorical", description="one-hot variables")
    classes: int = Field(16, ge=2, description="classes of each variable")
    unimix: float = Field(
        0.01, ge=0, lt=1, description="share of the uniform mixed into each categorical"
    )


class GaussianSettings(CodeSettings):
    """A diagonal Gaussian."""

    kind: Literal["gaussian"] = Field("gaussian", description="a diagonal Gaussian")


CODES = Kinds(
    "categorical",
    {
        "categorical": Kind(CategoricalSettings, "mbrl.world_model.code:CategoricalCode"),
        "gaussian": Kind(GaussianSettings, "mbrl.world_model.code:GaussianCode"),
    },
)
"""All codes by the name that `code.kind` gives."""


class KLSettings(Settings):
    """Kullback-Leibler terms (DreamerV3, arXiv:2301.04104, equation 5)."""

    free_nats: float = Field(
        1.0, ge=0, description="nats per frame below which the KL is not pushed"
    )
    soft_free_nats: float | None = Field(
        None,
        gt=0,
        description="instead of free_nats: press the KL down to this many nats per frame; while it "
        "is below, the weight of the representation's KL shrinks",
    )
    dynamics: float = Field(
        1.0, ge=0, description="weight of KL(stop(q) || p), which trains the prior"
    )
    representation: float = Field(
        0.1, ge=0, description="weight of KL(q || stop(p)), which trains the code"
    )


class HeadSettings(Settings):
    """Reward and continue heads."""

    hidden: int = Field(128, ge=1, description="width of the shared hidden layer")
    reward_bins: int = Field(
        41, ge=3, description="bins of the two-hot reward; odd, so that 0 is a bin"
    )
    reward_limit: float = Field(
        20.0, gt=0, description="|reward| to which the bins reach at first; larger ones widen them"
    )
    reward_weight: float = Field(1.0, ge=0, description="weight of the reward's loss")
    continue_weight: float = Field(1.0, ge=0, description="weight of the continue flag's loss")


class GridSettings(Settings):
    """The grid layout: a code and a state for each cell of the frame."""

    cell: int | None = Field(
        None, ge=1, description="side of a cell in pixels; default: 1 up to 16 x 16, else 8"
    )
    codes: int = Field(1024, ge=2, description="different patches that the codebook may hold")
    distance: float = Field(
        0.02,
        ge=0,
        description="squared difference of intensities, summed over a patch, from which it "
        "becomes a code of its own; cells of one pixel that are symbols are all told apart",
    )
    embedding: int = Field(16, ge=1, description="E, maps that stand for a code")
    hidden: int = Field(32, ge=1, description="D, maps of the state h")
    shows: Literal["both", "code"] = Field(
        "both",
        description="what policies see: code and state, or the code alone, which does not move "
        "while the state is learnt, but must say all that matters",
    )
    prior: Literal["joint", "independent"] = Field(
        "joint", description="draw cells one after another, or each by itself"
    )
    prior_maps: int = Field(16, ge=1, description="maps of the prior's stacks")
    prior_layers: int = Field(1, ge=1, description="gated layers of the prior's stacks")


class VectorSettings(Settings):
    """The vectors layout: numbers and categories as they are."""

    hidden: int = Field(64, ge=1, description="D, numbers of the state h")
    width: int = Field(128, ge=1, description="width of the hidden layers")
    members: int = Field(
        3, ge=1, description="networks of the ensemble: dreams spread where they disagree"
    )
    components: int = Field(
        4,
        ge=1,
        description="outcomes that a member tells apart; in each of them numbers and categories "
        "are independent",
    )
    shows: Literal["both", "code"] = Field(
        "both",
        description="what policies see: code and state, or the code alone, which does not move "
        "while the state is learnt, but must say all that matters",
    )


class WorldModelSettings(Settings):
    """A world model; `grid` and `vectors` are of these layouts, which share `heads` alone.

    Grid also reads `bf16` and `decoder.levels`.
    """

    layout: Literal["auto", "flat", "grid", "vectors"] = Field(
        "auto",
        description="of images, code and state are vectors (flat), or maps over the frame's cells "
        "(grid); of numbers and categories the code is what was observed (vectors); auto is flat "
        "for an image and vectors for all else",
    )
    init_from: Path | None = Field(
        None,
        description="run folder whose newest world model this one begins with: each part that fits "
        "is taken over, all others start anew, and the log says which",
    )
    init_anew: tuple[str, ...] = Field(
        (), description="parts that start anew all the same, such as `heads` for another reward"
    )
    grid: GridSettings = GridSettings()
    vectors: VectorSettings = VectorSettings()
    encoder: Annotated[EncoderSettings, ENCODERS] = NormalisedSettings()
    code: Annotated[CodeSettings, CODES] = CategoricalSettings()
    hidden: int = Field(256, ge=1, description="D, size of the RNN state h")
    posterior: Literal["frame", "recurrent"] = Field(
        "frame", description="q(z | x), one pass over all rows; or q(z | x, h), a loop over time"
    )
    prior_hidden: int = Field(128, ge=1, description="width of the prior's hidden layer")
    decoder: Annotated[DecoderSettings, DECODERS] = PixelCNNSettings()
    heads: HeadSettings = HeadSettings()
    kl: KLSettings = KLSettings()
    joint: bool = Field(
        True, description="False: the encoder learns from pixels only (World Models, 2018)"
    )
    bf16: bool = Field(
        True,
        description="run matrix products and convolutions in bfloat16 where the device has it; "
        "elsewhere in float32",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "WorldModelSettings":
        if self.init_anew and self.init_from is None:
            raise ValueError("init_anew needs init_from: without it every part starts anew")
        if self.layout == "grid" and (self.posterior == "recurrent" or not self.joint):
            raise ValueError(
                "layout: grid has neither posterior: recurrent nor joint: false; they are of "
                "layout: flat"
            )
        if self.posterior == "recurrent" and self.encoder.kind == "world_models":
            raise ValueError("posterior: recurrent needs encoder.kind: normalised")
        if self.posterior == "recurrent" and not self.joint:
            raise ValueError(
                "joint: false needs posterior: frame; a recurrent posterior is part of the dynamics"
            )
        if self.heads.reward_bins % 2 == 0:
            raise ValueError(f"heads.reward_bins must be odd, got {self.heads.reward_bins}")
        return self
