"""What a config may say of each decoder, and the table of all decoders.

Imports nothing heavy, so that checking a config is quick. A new decoder is a file with a subclass
of `decoders.base.Decoder` and a line in `DECODERS`; it needs a class here only for settings of its
own.
"""

from typing import Literal

from pydantic import Field, field_validator

from mbrl.config.base import Settings
from mbrl.config.kinds import Kind, Kinds


class DecoderSettings(Settings):
    """The observation likelihood p(x | z, h): what all kinds have."""

    kind: str = Field(description="which decoder")
    levels: int | None = Field(
        None,
        ge=2,
        le=256,
        description="levels V of a pixel; default: every value that the space has, if these are at "
        "most 32 or the image at most 11 x 11, else 16 intensities",
    )
    fraction: float = Field(
        1.0, gt=0, le=1, description="share of the rows decoded in training, unbiased"
    )
    sees_hidden: bool = Field(True, description="condition on the time state h as well as on z")


class MappedSettings(DecoderSettings):
    """A decoder that lays (z, h) out as maps; see `decoders.base`."""

    hidden: int = Field(128, ge=1, description="width of the condition vector made from (z, h)")
    map_products: int = Field(
        0, ge=0, description="maps of the condition that are a profile over rows times one over "
        "columns"
    )  # fmt: skip


class PixelCNNSettings(MappedSettings):
    """Pixel after pixel, each given those before it."""

    kind: Literal["pixelcnn"] = Field("pixelcnn", description="pixel after pixel")
    channels: int = Field(16, ge=1, description="maps F of each stack")
    layers: int = Field(2, ge=1, description="gated layers L; the field reaches L + 1 rows up")
    block: int = Field(
        1, ge=1, description="side of the pixel blocks its stacks work on; exact for any"
    )
    embedding: int = Field(4, ge=1, description="numbers that stand for a pixel's level")
    head_units: int = Field(32, ge=1, description="hidden units of each sub-pixel")
    map_channels: int = Field(16, ge=1, description="maps of the spatial condition")
    marginal: bool = Field(True, description="start from each pixel's running level frequencies")


class DeconvSettings(MappedSettings):
    """All pixels at once, independent given (z, h)."""

    kind: Literal["deconv"] = Field("deconv", description="all pixels at once")
    likelihood: Literal["categorical", "mse"] = Field(
        "categorical", description="a distribution over levels, or the squared error"
    )
    channels: int = Field(16, ge=1, description="base maps")
    marginal: bool = Field(
        True, description="start from each pixel's running level frequencies; categorical only"
    )


class FlowSettings(Settings):
    """The flow decoder: RealNVP, Glow, or Glow whose steps share one coupling network."""

    variant: Literal["glow", "realnvp"] = Field(
        "glow",
        description="1x1 convolutions and couplings of halves; or RealNVP's alternating "
        "checkerboards and halves of the channels",
    )
    scales: int = Field(
        3, ge=1, description="L; each halves the image's sides, which must allow it"
    )
    steps: int = Field(8, ge=2, description="K, steps of flow at each scale")
    width: int = Field(64, ge=1, description="maps of the coupling network's hidden layers")
    coupling: Literal["affine", "additive"] = Field(
        "affine", description="couplings scale and shift, or only shift"
    )
    sharing: Literal["none", "level", "level+film", "level+film+proj", "global"] = Field(
        "level+film+proj",
        description="a network for every step; one per scale; one with gains and shifts of each "
        "step's own; and with a last layer of each step's own (NanoFlow); one for all scales",
    )
    memory: Literal["plain", "checkpoint", "reversible"] = Field(
        "plain",
        description="what the gradient is made from: all activations; one per step; or the last "
        "one only, from which the others are recomputed",
    )
    marginal: bool = Field(
        True,
        description="send every pixel through its own running distribution first, so that what "
        "never changes costs nothing; false: the even grid of published flows",
    )
    dequantisation: Literal["uniform", "variational"] = Field(
        "uniform", description="the noise that fills a level's bin: uniform, or a flow of its own"
    )
    temperature: float = Field(
        0.7, ge=0, description="deviation of what samples are made from; 1 is the model itself"
    )


class FlowDecoderSettings(MappedSettings):
    """All pixels at once, by an invertible network."""

    kind: Literal["flow"] = Field("flow", description="all at once by an invertible network")
    map_channels: int = Field(16, ge=1, description="maps of the spatial condition")
    flow: FlowSettings = FlowSettings()


class WorldModelsDecoderSettings(DecoderSettings):
    """The decoder of World Models (2018), for frames of 64 x 64."""

    kind: Literal["world_models"] = Field("world_models", description="that of 2018")
    likelihood: Literal["mse"] = Field("mse", description="the squared error")

    @field_validator("likelihood", mode="before")
    @classmethod
    def _always_squared_error(cls, value: object) -> object:
        """Runs of older versions hold a value for all kinds, which this one did not read."""
        return "mse" if value == "categorical" else value


DECODERS = Kinds(
    "pixelcnn",
    {
        "pixelcnn": Kind(PixelCNNSettings, "mbrl.world_model.decoders.pixelcnn:PixelCNNDecoder"),
        "deconv": Kind(DeconvSettings, "mbrl.world_model.decoders.deconv:DeconvDecoder"),
        "flow": Kind(FlowDecoderSettings, "mbrl.world_model.decoders.flow:FlowDecoder"),
        "world_models": Kind(
            WorldModelsDecoderSettings, "mbrl.world_model.decoders.world_models:WorldModelsDecoder"
        ),
    },
)
"""All decoders by the name that `decoder.kind` gives."""
