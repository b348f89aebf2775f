"""The picture that shows whether a world model understands its game.

Three rows for a few real sequences: what happened, the model's free-running sample of each frame it
has seen, and an open-loop dream: after a few frames of context only the real actions are given,
never another frame. Pixels are sampled from p(x | z, h); nothing is teacher-forced, so a decoder
cannot copy an object the code does not hold.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from envs.minatar import frame_to_rgb
from mbrl.episode import SAMPLED, Array, Episode, SequenceBatch, arrival
from mbrl.replay import ReplayStore
from mbrl.report.video import dream_grid, write_video
from mbrl.world_model.latent import Latent
from mbrl.world_model.model import ImageWorldModel, WorldModel

_SEARCHED_ROWS = 20_000  # the newest, or a few more


def to_rgb(frames: Array) -> NDArray[np.uint8]:
    """Images (..., H, W, C) as colours (..., H, W, 3): binary channels painted, grey repeated."""
    if frames.shape[-1] in (1, 3) and frames.max() > 1:
        return np.broadcast_to(frames, (*frames.shape[:-1], 3)).astype(np.uint8)
    return frame_to_rgb(frames)


def newest_sequences(store: ReplayStore, count: int, length: int) -> SequenceBatch | None:
    """The last rows of the longest of the newest episodes, in arrival order.

    Returns:
        (count, length) sequences that each lie within one episode, fewer and shorter ones if there
        are no others, or None if nothing is stored.
    """
    parts: dict[str, list[Episode]] = defaultdict(list)
    rows = 0
    for info in reversed(store.segments()):
        for fragment in store.read(info):
            parts[fragment.eps_id].append(fragment)
        rows += info.rows
        if rows >= _SEARCHED_ROWS:
            break
    runs = [run for fragments in parts.values() if (run := _joined(fragments))]
    runs = sorted(runs, key=lambda run: -sum(part.rows for part in run))[:count]
    if not runs:
        return None
    length = min(length, *(sum(part.rows for part in run) for run in runs))
    is_first = np.stack([np.arange(length + 1) == 1 for _ in runs])
    sampled = {name: _last(runs, name, length) for name in SAMPLED}
    return arrival(**{**sampled, "obs": sampled["obs"][:, 1:]}, is_first=is_first)


def _joined(fragments: list[Episode]) -> list[Episode]:
    """The longest run of fragments that follow one another, ending with the newest."""
    ordered = sorted(fragments, key=lambda part: -part.t0)
    run = [ordered[0]]
    for part in ordered[1:]:
        if part.t0 + part.rows == run[-1].t0:
            run.append(part)
    return run[::-1]


def _last(runs: list[list[Episode]], name: str, length: int) -> Any:
    """The last `length` rows of each run after one of padding, stacked: (B, length + 1, ...)."""
    rows = [np.concatenate([getattr(part, name) for part in run])[-length:] for run in runs]
    return np.stack([np.concatenate([np.zeros_like(row[:1]), row]) for row in rows])


@torch.no_grad()
def imagine_open_loop(
    world_model: WorldModel,
    batch: SequenceBatch,
    context: int,
    generator: torch.Generator,
    device: torch.device,
) -> tuple[Array, Array]:
    """Reconstructions and dream frames of real sequences (B, T).

    The dream has seen `context` rows before it closes its eyes.

    Returns:
        Two uint8 arrays (B, T, H, W, C). The first `context` frames of the dream are the
        reconstructions.
    """
    count, length = batch.shape
    obs = torch.as_tensor(batch.obs, device=device)
    action = torch.as_tensor(batch.prev_action, device=device)
    is_first = torch.as_tensor(batch.is_first, device=device)
    seen = world_model.initial(count, device)
    dreamed = seen
    posterior: list[Latent] = []
    dream: list[Latent] = []
    for t in range(length):
        seen = world_model.observe(seen, action[:, t], obs[:, t], is_first[:, t], generator).latent
        if t < context:
            dreamed = seen
        else:
            dreamed = world_model.imagine_step(dreamed, action[:, t], generator).latent
        posterior.append(seen)
        dream.append(dreamed)
    both = Latent(
        torch.stack([latent.hidden for latent in posterior + dream[context:]]),
        torch.stack([latent.code for latent in posterior + dream[context:]]),
    )
    frames = world_model.decode(both.flatten(), generator).unflatten(0, (-1, count))
    frames = frames.transpose(0, 1).cpu().numpy()
    reconstruction, dream_frames = frames[:, :length], frames[:, length:]
    return reconstruction, np.concatenate([reconstruction[:, :context], dream_frames], 1)


def write_dream_video(
    path: Path,
    world_model: WorldModel,
    store: ReplayStore,
    generator: torch.Generator,
    device: torch.device,
) -> Path | None:
    """Film a few of the newest sequences, their reconstructions and dreams.

    Small frames are cheap to sample and get more and longer sequences than large ones.

    Returns:
        The path, or None if there are no images, or no sequence longer than the context in replay.
    """
    if not isinstance(world_model, ImageWorldModel):
        return None
    small = max(world_model.image_shape[1:]) <= 16
    count, length, context = (4, 40, 6) if small else (3, 20, 5)
    batch = newest_sequences(store, count, length)
    if batch is None or batch.shape[1] <= context:
        return None
    reconstruction, dream = imagine_open_loop(world_model, batch, context, generator, device)
    scale = max(1, 160 // max(world_model.image_shape[1:]))
    frames = dream_grid(to_rgb(batch.obs), to_rgb(reconstruction), to_rgb(dream), context, scale)
    return write_video(path, frames, fps=5)
