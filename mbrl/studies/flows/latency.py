"""How long 64 images take to draw: by a PixelCNN, and by a flow of a decoder's size.

Of the study's size, and of a game's whole frames if the study's are smaller.

    python -m mbrl.studies.flows.latency pong --arm none ...

The PixelCNN is the world model's decoder (`configs/atari.yaml`: stacks on blocks of pixels, 2
layers), without a condition and trained for a few hundred updates on the same images, since how
many passes its sampler takes depends on what was learnt. CPU time of one thread, the faster of two
passes after one to warm up, for PixelCNN and flows alike. The flows of
the study are timed by `cost.py`; they have 32 steps for each scale, many more than a decoder needs,
so that one of 6 steps and width 32 stands beside them here, without a condition and untrained: how
long its one pass takes does not depend on what was learnt.
"""

import sys
from functools import partial
from typing import Any

import numpy as np
import torch

from mbrl.studies.flows.bits import to_tensor
from mbrl.studies.flows.cost import SAMPLED, cpu_ms_of, sample_ms, write_side
from mbrl.studies.flows.images import ImageSet, drawn_sources, load_images, name_of
from mbrl.studies.flows.settings import FlowStudySettings
from mbrl.studies.flows.trial import command_line
from mbrl.studies.flows.trials import Trial, is_fresh, known_digest
from mbrl.world_model.decoders.pixelcnn import PixelCNNDecoder, sample_blocks
from mbrl.world_model.decoders.settings import FlowSettings, PixelCNNSettings

DECODER = PixelCNNSettings(channels=32, layers=2, block=4, map_products=16, head_units=16)
"""As in `configs/atari.yaml`."""
FLOW = FlowSettings(scales=3, steps=6, width=32)
"""As large as a world model's decoder; of fewer scales where images cannot be halved so often."""
UPDATES, UPDATES_QUICK, BATCH, LR = 300, 2, 16, 2e-3
NAME = "pixelcnn.latency.json"
VERSION = 3


def latencies(images: ImageSet, updates: int) -> dict[str, float]:
    """CPU milliseconds for 64 images by the sampler, after so many updates of training.

    Raises:
        ConfigError: the images cannot be cut into the decoder's blocks.
    """
    torch.manual_seed(0)
    decoder = PixelCNNDecoder(images.shape, images.levels, 1, DECODER)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=LR)
    rng = np.random.default_rng(0)
    for _ in range(updates):
        batch = to_tensor(images.train[rng.integers(len(images.train), size=BATCH)])
        loss = -decoder.log_prob(batch.long(), torch.ones(BATCH, 1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    decoder.eval()
    features = torch.ones(SAMPLED, 1)
    noise = decoder.gumbel(SAMPLED, features.device, torch.Generator().manual_seed(0))
    return {"fixed_point": cpu_ms_of(partial(sample_blocks, decoder, features, noise))}


def flow_ms(images: ImageSet) -> float:
    """CPU milliseconds for 64 images by a flow of a decoder's size."""
    _, height, width = images.shape
    halvings = min((side & -side).bit_length() - 1 for side in (height, width))
    flow = FLOW.model_copy(update={"scales": max(1, min(FLOW.scales, halvings))})
    return sample_ms(FlowStudySettings(flow=flow), images.shape, images.levels)


def settings_of(trial: Trial) -> dict[str, Any]:
    """What they depend on."""
    return {
        "images": trial.source.settings(),
        "quick": trial.quick,
        "decoder": DECODER.model_dump(mode="json"),
        "flow": FLOW.model_dump(mode="json"),
        "updates": UPDATES_QUICK if trial.quick else UPDATES,
    }


def is_done(trial: Trial) -> bool:
    """Whether they are there, with these settings and of this version."""
    path = trial.cost_path.with_name(NAME)
    return is_fresh(path, VERSION, settings_of(trial), known_digest(trial))


def run(trial: Trial) -> None:
    """Measure and write."""
    settings = settings_of(trial)
    found, digests = {}, []
    for images in map(load_images, drawn_sources(trial.source)):
        timed = {**latencies(images, settings["updates"]), "flow": flow_ms(images)}
        found[name_of(images.shape)] = timed
        digests.append(images.digest)
    write_side(
        trial.cost_path.with_name(NAME),
        trial,
        {
            "version": VERSION,
            "digest": digests[0],
            "digests": digests,
            "settings": settings,
            "ms": found,
        },
    )


if __name__ == "__main__":
    sys.exit(command_line(run, "Time PixelCNN's sampler on the images of the study.", None))
