"""Settings that are gone: what stood in their place by default, and what to do without them.

A config that names one gets its sentence. An old run whose value is the default goes on.
"""

REMOVED: dict[str, tuple[object, str]] = {
    "world_model.decoder.auxiliary": (
        0.0,
        "the auxiliary head is gone, as Pong's ball was seen no better with it; leave it out, and "
        "raise world_model.decoder.map_products where objects lose their places",
    ),
    "world_model.decoder.input_dropout": (
        0.0,
        "input dropout is gone: the decoder read its code more and saw objects no better; leave it "
        "out, and lower world_model.decoder.layers where the decoder ignores the code",
    ),
    "world_model.decoder.loss_floor": (
        0.0,
        "the floor under a pixel's nats is gone, as objects were seen no better with it; leave it "
        "out, as world_model.decoder.marginal makes solved pixels cheap from the start",
    ),
    "world_model.decoder.sampler": (
        "fixed_point",
        "only the fastest sampler, fixed_point, is left; leave it out, as all drew the same frames",
    ),
    "world_model.encoder.keep_whole": (
        False,
        "the encoder no longer sees whole frames beside what is new, as it drew the balls of Pong "
        "and Breakout less often with both; leave it out, and keep encoder.subtract_past",
    ),
    "world_model.grid.corrupted": (
        0.0,
        "cells that the state is shown wrong in training are gone, as the model learnt more slowly "
        "with them; leave it out",
    ),
    "world_model.kl.warmup_updates": (
        0,
        "the warm-up of the KL is gone, as objects were seen no better with it; use "
        "world_model.kl.soft_free_nats, whose weight follows the KL by itself",
    ),
}
"""By dotted name: the default, and a sentence that says what to use instead."""
