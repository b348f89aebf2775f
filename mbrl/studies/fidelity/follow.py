"""Real rows together with the latents that belong to them: what every measure starts from.

Windows of held-out (or training) rows go through `WorldModel.observe`. The first `BURN_IN` rows of
a window only warm the recurrent state up and are not measured, except where the window starts with
its episode, whose first rows are a situation of their own.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mbrl.seeding import seed as derive
from mbrl.studies.fidelity.frames import Frames
from mbrl.world_model.latent import Latent, Observed
from mbrl.world_model.model import ImageWorldModel, WorldModel

BURN_IN = 16  # rows observed before anything is measured
LENGTH = 64  # rows of a window, burn-in included
ROWS_PER_BATCH = 1024  # rows observed at once: bounds the memory, changes nothing else


@dataclass(frozen=True)
class Followed:
    """M measured rows; tensors are on the CPU."""

    rows: NDArray[np.int64]  # (M,), their places in the frames
    latent: Latent  # (M, ...), the posterior code of each row and the state before it
    posterior: Tensor  # (M, ...), what `WorldModel.rates` needs of q(z | x)

    def take(self, index: NDArray[np.integer]) -> "Followed":
        """Some of the rows, in the order of `index`."""
        chosen = torch.as_tensor(index)
        return Followed(self.rows[index], self.latent[chosen], self.posterior[chosen])


def stream(seed: int, role: str, device: torch.device | None = None) -> torch.Generator:
    """The torch random stream of one measure, on the device where it draws."""
    return torch.Generator(device or "cpu").manual_seed(derive(seed, f"fidelity/{role}"))


def rng_of(seed: int, role: str) -> np.random.Generator:
    """The numpy random stream of one measure."""
    return np.random.default_rng(derive(seed, f"fidelity/{role}"))


def filtered(
    model: WorldModel,
    frames: Frames,
    starts: NDArray[np.int64],
    length: int,
    generator: torch.Generator,
) -> Observed:
    """`WorldModel.observe` of the windows (B, length) that start at `starts`, on the CPU."""
    step = max(1, ROWS_PER_BATCH // length)
    parts = []
    for i in range(0, len(starts), step):
        batch = frames.batch(starts[i : i + step], length)
        start = model.initial(len(batch.obs), model.device)
        parts.append(model.observe(start, *model.inputs(batch), generator))
    latent = Latent.cat([part.latent.to("cpu") for part in parts])
    return Observed(latent, torch.cat([part.posterior for part in parts]).cpu())


def follow(
    model: WorldModel,
    frames: Frames,
    count: int,
    seed: int,
    role: str,
    *,
    length: int = LENGTH,
    ahead: int = 0,
    keep_every: int = 2,
) -> Followed:
    """Follow random windows of `length` rows and keep `count` of their rows, or a few more.

    `role` names the random streams. In the same episode `ahead` rows follow each window. Of
    neighbours, which are almost copies of each other, one row of `keep_every` is measured.
    """
    per_window = -(-(length - BURN_IN) // keep_every)
    windows = -(-count // per_window)
    starts = frames.windows(length + ahead, windows, rng_of(seed, f"{role}/windows"))
    seen = filtered(model, frames, starts, length, stream(seed, f"{role}/codes", model.device))
    time = np.arange(length)
    measured = (time >= BURN_IN) | frames.is_first[starts][:, None]
    measured &= (time - BURN_IN) % keep_every == 0
    rows = (starts[:, None] + time)[measured]
    picked = torch.as_tensor(measured)
    return Followed(rows, seen.latent[picked], seen.posterior[picked])


def decoded(
    model: WorldModel, latent: Latent, generator: torch.Generator, batch: int = 64
) -> NDArray[np.uint8]:
    """Free-running samples of p(x | z, h), (M, H, W, C) uint8, drawn a batch at a time."""
    parts = []
    for i in range(0, len(latent.hidden), batch):
        here = latent[i : i + batch].to(model.device)
        parts.append(model.decode(here, generator).cpu().numpy())
    return np.concatenate(parts)


def quantised(model: ImageWorldModel, images: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Images as the decoder can draw them at best: through its intensity levels and back."""
    parts = torch.as_tensor(images).split(ROWS_PER_BATCH)
    return np.concatenate([model.to_pixels(model.to_levels(part)).numpy() for part in parts])
