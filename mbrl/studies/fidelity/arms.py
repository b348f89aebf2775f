"""The arms of the fidelity study: world models that differ in a few settings and in nothing else.

An arm is a title and overrides on `configs/fidelity.yaml`, never code (see `studies.arms`).
Variants and ablations have one seed and half the minutes of main arms, unless they are read beside
one main arm: then they have all of them. Tables name the minutes. Retired arms are those whose
setting is gone; their results stay.
"""

from mbrl.config.removed import REMOVED
from mbrl.studies.arms import Arm

_PLAIN_ENCODER = (
    "world_model.encoder.norm=none",
    "world_model.encoder.subtract_mean=false",
    "world_model.encoder.deviation=null",
)
# full-resolution maps are what a deconvolution costs: half of PixelCNN's number per frame
_DECONV = ("world_model.decoder.kind=deconv", "world_model.decoder.channels=8")
# Ha & Schmidhuber (2018): a VAE of its own with 32 Gaussian dimensions and a floor of half a nat
# for each, summed squared error on every frame, and a decoder that sees the code alone. Its step
# size was 1e-4, over 100 million frames; ours sees far fewer, so it is three times as large.
_WORLD_MODELS = (
    "world_model.joint=false",
    "world_model.decoder={kind: world_models, likelihood: mse, levels: 256, sees_hidden: false, "
    "fraction: 1.0}",
    "world_model.code={kind: gaussian, groups: 32}",
    "world_model.kl={soft_free_nats: null, free_nats: 16.0, representation: 1.0}",
    "learn_model.lr=0.0003",
)
# few and narrow steps, as full-resolution maps are dear; samples are the model's own, not cooler
_FLOW = (
    "world_model.decoder.kind=flow",
    "world_model.decoder.flow={scales: 3, steps: 6, width: 32, temperature: 1.0}",
)
# one seed, but for as long as the main arm that it is read beside
_AS_MAIN = (30.0, 30.0)
_PAST = "world_model.encoder.subtract_past=true"
_LONG = ("learn_model.batch_size=6", "learn_model.sequence_length=32")
_NO_HIDDEN = "world_model.decoder.sees_hidden=false"
_STAGEWISE = "world_model.joint=false"
# Pong's code is below the 12 nats of the base by itself, and nothing presses on it; it stays above
# 4, so with this target the whole weight of the KL does
_PRESSED = "world_model.kl.soft_free_nats=4"


def _gone(setting: str) -> str:
    return REMOVED[f"world_model.{setting}"][1]


ARMS: dict[str, Arm] = {
    "world_models": Arm(
        "World Models (2018)",
        (*_WORLD_MODELS, "world_model.encoder={kind: world_models}"),
        main=True,
        note="the system that loses Pong's ball, with its own encoder and decoder",
    ),
    "deconv_categorical": Arm(
        "deconv, categorical",
        _DECONV,
        main=True,
        note="the control: the same likelihood per pixel, all pixels at once",
    ),
    "pixelcnn": Arm(
        "PixelCNN", (), main=True, note="joint, 2 layers on blocks of 4, sees the time state"
    ),
    "pixelcnn_stagewise": Arm(
        "PixelCNN, stage-wise",
        (_STAGEWISE,),
        main=True,
        note="the code learns from pixels alone, not from the dynamics",
    ),
    "pixelcnn_past": Arm(
        "PixelCNN, past subtracted",
        (_PAST,),
        main=True,
        note="the encoder sees what is new in a frame",
    ),
    "grid": Arm(
        "grid, joint prior",
        ("world_model.layout=grid", "learn_model.lr=0.004", "learn_model.halve_after=500"),
        note="code and state are maps; the code is each cell's patch of pixels",
        budget=_AS_MAIN,
    ),
    "deconv_past": Arm(
        "deconv, categorical, past subtracted",
        (*_DECONV, _PAST),
        note="the control of pixelcnn_past",
        budget=_AS_MAIN,
    ),
    "pixelcnn_past_beside": Arm(
        "PixelCNN, shown both",
        note="the encoder sees both whole frames and what is new in them",
        retired=_gone("encoder.keep_whole"),
    ),
    "pixelcnn_past_long": Arm(
        "PixelCNN, past subtracted, long",
        (_PAST, *_LONG),
        note="6 sequences of 32 rows in a batch instead of 12 of 16, as in the Atari configs",
        budget=_AS_MAIN,
    ),
    "world_models_norm": Arm(
        "World Models, our encoder",
        _WORLD_MODELS,
        note="so that the encoder does not get the decoder's credit",
        budget=_AS_MAIN,
    ),
    "deconv_mse": Arm(
        "deconv, squared error",
        (*_DECONV, "world_model.decoder.likelihood=mse", "world_model.decoder.levels=256"),
        note="joint",
    ),
    "flow": Arm(
        "flow (Glow, shared couplings)",
        _FLOW,
        note="joint; all pixels at once, and drawn in one pass",
    ),
    "pixelcnn_1": Arm("PixelCNN, 1 layer", ("world_model.decoder.layers=1",)),
    "pixelcnn_2": Arm("PixelCNN, 2 layers", (), note="the main arm, and the variants' reference"),
    **{
        f"pixelcnn_{layers}": Arm(
            f"PixelCNN, {layers} layers", (f"world_model.decoder.layers={layers}",)
        )
        for layers in (3, 5, 8)
    },
    "pixelcnn_no_hidden": Arm("PixelCNN without h", (_NO_HIDDEN,)),
    "pixelcnn_no_hidden_stagewise": Arm("PixelCNN without h, stage-wise", (_NO_HIDDEN, _STAGEWISE)),
    "pixelcnn_stagewise_free": Arm(
        "PixelCNN, stage-wise, free code",
        (_STAGEWISE, "world_model.kl.soft_free_nats=48"),
        note="the 12 nats of the base are to a static prior here, which the others' codes exceed",
        budget=_AS_MAIN,
    ),
    "pixelcnn_plain_encoder": Arm("plain encoder", _PLAIN_ENCODER),
    "pixelcnn_frame_norm": Arm("maps normalised together", ("world_model.encoder.norm=frame",)),
    "pixelcnn_no_products": Arm("no product maps", ("world_model.decoder.map_products=0",)),
    "pixelcnn_gaussian": Arm("Gaussian code", ("world_model.code={kind: gaussian, groups: 32}",)),
    "pixelcnn_pixels": Arm(
        "no blocks, 16 maps, 3 layers",
        (
            "world_model.decoder.block=1",
            "world_model.decoder.channels=16",
            "world_model.decoder.layers=3",
        ),
    ),
    "pixelcnn_narrow": Arm("16 maps", ("world_model.decoder.channels=16",)),
    "pixelcnn_blocks_of_2": Arm("blocks of 2", ("world_model.decoder.block=2",)),
    "pixelcnn_free_nats": Arm(
        "hard free nats 4", ("world_model.kl.soft_free_nats=null", "world_model.kl.free_nats=4")
    ),
    "pixelcnn_no_pixel_floor": Arm("pixels not weighed", ("world_model.encoder.pixel_floor=null",)),
    "pixelcnn_no_deviation": Arm("code not standardised", ("world_model.encoder.deviation=null",)),
    **{
        f"pixelcnn_soft_free_nats_{nats}": Arm(
            f"soft free nats {nats}", (f"world_model.kl.soft_free_nats={nats}",)
        )
        for nats in (4, 8, 16)
    },
    "pixelcnn_kl_unbalanced": Arm(
        "KL not balanced",
        (_PRESSED, "world_model.kl.representation=1.0"),
        note="beside soft free nats 4",
    ),
    "pixelcnn_kl_warmup": Arm("KL warm-up", retired=_gone("kl.warmup_updates")),
    "pixelcnn_input_dropout": Arm("input dropout", retired=_gone("decoder.input_dropout")),
    "pixelcnn_auxiliary_head": Arm("auxiliary head", retired=_gone("decoder.auxiliary")),
    "pixelcnn_loss_floor": Arm("loss floor", retired=_gone("decoder.loss_floor")),
    "pixelcnn_no_marginal": Arm("no marginal", ("world_model.decoder.marginal=false",)),
    "pixelcnn_falling_step": Arm("falling step size", ("learn_model.halve_after=1000",)),
    "pixelcnn_recurrent": Arm("recurrent posterior", ("world_model.posterior=recurrent",)),
    "pixelcnn_long": Arm(
        "sequences of 32", _LONG, note="6 sequences of 32 rows in a batch instead of 12 of 16"
    ),
    "pixelcnn_all_rows": Arm("every row decoded", ("world_model.decoder.fraction=1.0",)),
    "supervised": Arm(
        "labels given",
        note="no world model: our encoder learns the labels, from one frame at a time",
    ),
}

SWEEP = ("pixelcnn_1", "pixelcnn_2", "pixelcnn_3", "pixelcnn_5", "pixelcnn_8")
"""Arms that differ in the number of layers alone, and so in receptive field, weights and cost."""
SUPERVISED = "supervised"
"""The arm that is given the labels that the others' codes are probed for; see `supervised.py`."""
REFERENCE = "pixelcnn_2"
"""The main arm's settings with the budget of variants, which are to be compared with it."""
