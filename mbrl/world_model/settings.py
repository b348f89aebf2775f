"""Settings of the world model; imports nothing heavy, so that checking a config is quick."""

from typing import Literal

from pydantic import Field, model_validator

from mbrl.config.settings import Settings


class EncoderSettings(Settings):
    """The VAE's encoder."""

    kind: Literal["normalised", "world_models"] = Field(
        "normalised",
        description="ours; or the plain one of World Models (2018), which has no other settings",
    )
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
    keep_whole: bool = Field(
        False,
        description="with subtract_past: see the frame minus the mean frame as well, as further "
        "channels",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "EncoderSettings":
        if self.subtract_past and (self.kind == "world_models" or not self.subtract_mean):
            raise ValueError(
                "encoder.subtract_past: true needs encoder.kind: normalised and "
                "encoder.subtract_mean: true"
            )
        if self.keep_whole and not self.subtract_past:
            raise ValueError("encoder.keep_whole: true needs encoder.subtract_past: true")
        return self


class CodeSettings(Settings):
    """The stochastic code z."""

    kind: Literal["categorical", "gaussian"] = Field(
        "categorical", description="groups of one-hot variables, or a diagonal Gaussian"
    )
    groups: int = Field(16, ge=1, description="categorical variables, or Gaussian dimensions")
    classes: int = Field(
        16, ge=2, description="classes of each categorical variable; unused by gaussian"
    )
    unimix: float = Field(
        0.01, ge=0, lt=1, description="share of the uniform mixed into each categorical"
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
        description="kept for the gradient: all activations; one per step; or the last one only, "
        "from which the others are recomputed",
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


class DecoderSettings(Settings):
    """The observation likelihood p(x | z, h)."""

    kind: Literal["pixelcnn", "deconv", "flow", "world_models"] = Field(
        "pixelcnn",
        description="pixel after pixel; all pixels at once; all at once by an invertible network; "
        "or that of World Models (2018)",
    )
    likelihood: Literal["categorical", "mse"] = Field(
        "categorical", description="mse is for deconv only; world_models is mse"
    )
    levels: int | None = Field(
        None, ge=2, le=256, description="intensity levels V; default: 2 for binary frames, else 16"
    )
    channels: int = Field(16, ge=1, description="PixelCNN: maps F of each stack; deconv: base maps")
    layers: int = Field(
        2, ge=1, description="PixelCNN: gated layers L; the field reaches L + 1 rows up"
    )
    block: int = Field(
        1, ge=1, description="PixelCNN: side of the pixel blocks its stacks work on; exact for any"
    )
    embedding: int = Field(4, ge=1, description="PixelCNN: numbers that stand for a pixel's level")
    head_units: int = Field(32, ge=1, description="PixelCNN: hidden units of each sub-pixel")
    map_channels: int = Field(16, ge=1, description="maps of the spatial condition")
    map_products: int = Field(
        0, ge=0, description="further maps of it, each a profile over rows times one over columns"
    )
    hidden: int = Field(128, ge=1, description="width of the condition vector made from (z, h)")
    input_dropout: float = Field(
        0.0, ge=0, lt=1, description="PixelCNN: whole pixels hidden from the stack"
    )
    auxiliary: float = Field(
        0.0,
        ge=0,
        description="PixelCNN: weight of a second, factorised guess at the frame, in training",
    )
    loss_floor: float = Field(
        0.0, ge=0, description="nats of a pixel below which it counts as solved and is not pushed"
    )
    fraction: float = Field(
        1.0, gt=0, le=1, description="share of the rows decoded in training, unbiased"
    )
    sampler: Literal["fixed_point", "wavefront", "cached", "naive"] = Field(
        "fixed_point",
        description="PixelCNN: how samples are drawn; all give the same frames, in different time",
    )
    marginal: bool = Field(
        True, description="start from each pixel's running level frequencies; categorical only"
    )
    sees_hidden: bool = Field(True, description="condition on the time state h as well as on z")
    flow: FlowSettings = FlowSettings()


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
    warmup_updates: int = Field(
        0, ge=0, description="updates over which the representation's KL grows to its weight"
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
    reward_limit: float = Field(20.0, gt=0, description="largest |reward| the bins reach")
    reward_weight: float = Field(1.0, ge=0, description="weight of the reward's loss")
    continue_weight: float = Field(1.0, ge=0, description="weight of the continue flag's loss")


class WorldModelSettings(Settings):
    """VAE encoder, PixelCNN decoder and RNN dynamics, trained jointly."""

    encoder: EncoderSettings = EncoderSettings()
    code: CodeSettings = CodeSettings()
    hidden: int = Field(256, ge=1, description="D, size of the RNN state h")
    posterior: Literal["frame", "recurrent"] = Field(
        "frame", description="q(z | x), one pass over all rows; or q(z | x, h), a loop over time"
    )
    prior_hidden: int = Field(128, ge=1, description="width of the prior's hidden layer")
    decoder: DecoderSettings = DecoderSettings()
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
        if self.decoder.kind == "pixelcnn" and self.decoder.likelihood == "mse":
            raise ValueError(
                "decoder.likelihood: mse needs decoder.kind: deconv; PixelCNN is categorical"
            )
        if self.decoder.kind == "flow" and self.decoder.likelihood == "mse":
            raise ValueError(
                "decoder.likelihood: mse needs decoder.kind: deconv; a flow has its own likelihood"
            )
        if self.decoder.kind == "flow" and self.decoder.loss_floor > 0:
            raise ValueError(
                "decoder.loss_floor must be 0 for decoder.kind: flow, whose pixels have no nats of "
                f"their own, got {self.decoder.loss_floor}"
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
