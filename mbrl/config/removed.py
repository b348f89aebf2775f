"""Settings that are no more: what they stood at when they had no effect, and what to do instead."""

from typing import Any

REMOVED: dict[str, tuple[Any, str]] = {
    "world_model.decoder.auxiliary": (
        0.0,
        "removed: the auxiliary guess did not pay; leave it out",
    ),
    "world_model.decoder.loss_floor": (
        0.0,
        "removed: the floor under a pixel's loss did not pay; leave it out",
    ),
    "world_model.decoder.input_dropout": (
        0.0,
        "removed: hiding pixels from PixelCNN did not pay; leave it out",
    ),
    "world_model.kl.warmup_updates": (
        0,
        "removed: use kl.soft_free_nats, which adapts the weight by itself",
    ),
}
"""Dotted name: (the value that had no effect, a sentence for whoever still sets it)."""
