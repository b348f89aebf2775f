"""The picture that shows whether a world model understands its game.

Three rows for a few real sequences: what happened, the model's free-running sample of each frame it
has seen, and an open-loop dream: after a few frames of context only the real actions are given,
never another frame. Pixels are sampled from p(x | z, h); nothing is teacher-forced, so a decoder
cannot copy an object the code does not hold.
"""

import colorsys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from envs.minatar import COLOURS, frame_to_rgb
from mbrl.episode import Array, Episode, SequenceBatch, arrived, joined
from mbrl.errors import Stopped
from mbrl.replay import ReplayStore
from mbrl.report.video import dream_grid, write_video
from mbrl.world_model.latent import Latent
from mbrl.world_model.model import ImageWorldModel, WorldModel

_SEARCHED_ROWS = 20_000  # the newest, or a few more
_DRAWN_AT_ONCE = 64  # frames, after which it looks whether to stop: large ones take a minute


def to_rgb(frames: Array, low: float = 0, span: float = 255) -> NDArray[np.uint8]:
    """Images (..., H, W, C) of any type as colours (..., H, W, 3) uint8.

    One channel is grey, three are red, green and blue. Of other numbers of channels each has a
    colour of its own: binary planes are painted over one another, intensities are mixed as light.

    Args:
        frames: the images.
        low: the least value of a pixel.
        span: the largest value less the least.
    """
    channels = frames.shape[-1]
    if span == 1 and frames.dtype.kind != "f" and channels not in (1, 3):
        planes = frames != low
        if channels <= len(COLOURS):
            return frame_to_rgb(planes)
        top = (planes * np.arange(1, channels + 1)).max(-1)
        return np.concatenate([np.zeros((1, 3), np.uint8), _colours(channels)])[top]
    share = np.clip((frames.astype(np.float32) - low) / span, 0, 1)
    if channels not in (1, 3):
        dark = np.ones((*frames.shape[:-1], 3), np.float32)
        for channel, colour in enumerate(_colours(channels)):
            dark *= 1 - share[..., channel, None] * (colour / np.float32(255))
        share = 1 - dark
    return (np.broadcast_to(share, (*frames.shape[:-1], 3)) * 255).round().astype(np.uint8)


def _colours(channels: int) -> NDArray[np.uint8]:
    """A colour for each channel (C, 3): MinAtar's, and beyond ten around the wheel of hues."""
    hues = (colorsys.hsv_to_rgb(0.618 * index % 1, 0.7, 1) for index in range(channels))
    return np.concatenate([COLOURS, (np.array(list(hues)) * 255).astype(np.uint8)])[:channels]


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
    pieces = [joined(run).sampled for run in runs]
    return arrived({name: _last(pieces, name, length) for name in pieces[0]}, is_first)


def _joined(fragments: list[Episode]) -> list[Episode]:
    """The longest run of fragments that follow one another, ending with the newest."""
    ordered = sorted(fragments, key=lambda part: -part.t0)
    run = [ordered[0]]
    for part in ordered[1:]:
        if part.t0 + part.rows == run[-1].t0:
            run.append(part)
    return run[::-1]


def _last(pieces: list[dict[str, Array]], name: str, length: int) -> Any:
    """The last `length` rows of each piece after one of padding, stacked: (B, length + 1, ...)."""
    rows = [piece[name][-length:] for piece in pieces]
    return np.stack([np.concatenate([np.zeros_like(row[:1]), row]) for row in rows])


@torch.no_grad()
def imagine_open_loop(
    world_model: WorldModel,
    batch: SequenceBatch,
    context: int,
    generator: torch.Generator,
    device: torch.device,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[Array, Array]:
    """Reconstructions and dream frames of real sequences (B, T).

    The dream has seen `context` rows before it closes its eyes. `stop` is asked now and then
    whether to give up.

    Returns:
        Two arrays (B, T, H, W, C) of the space's dtype. The first `context` frames of the dream are
        the reconstructions.

    Raises:
        Stopped: `stop` said so.
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
    drawn, flat = [], both.flatten()
    for first in range(0, len(flat.hidden), _DRAWN_AT_ONCE):
        if stop():
            raise Stopped
        drawn.append(world_model.decode(flat[first : first + _DRAWN_AT_ONCE], generator))
    frames = torch.cat(drawn).unflatten(0, (-1, count)).transpose(0, 1).cpu().numpy()
    reconstruction, dream_frames = frames[:, :length], frames[:, length:]
    return reconstruction, np.concatenate([reconstruction[:, :context], dream_frames], 1)


def write_dream_video(
    path: Path,
    world_model: WorldModel,
    store: ReplayStore,
    generator: torch.Generator,
    device: torch.device,
    stop: Callable[[], bool] = lambda: False,
) -> Path | None:
    """Film a few of the newest sequences, their reconstructions and dreams.

    Small frames are cheap to sample and get more and longer sequences than large ones.

    Returns:
        The path, or None if the model sees no images, or replay holds no sequence longer than the
        context.

    Raises:
        Stopped: `stop`, asked now and then, said so; there is no file.
    """
    if not isinstance(world_model, ImageWorldModel):
        return None
    images = world_model.images
    small = max(images.shape[1:]) <= 16
    count, length, context = (4, 40, 6) if small else (3, 20, 5)
    batch = newest_sequences(store, count, length)
    if batch is None or batch.shape[1] <= context:
        return None
    reconstruction, dream = imagine_open_loop(world_model, batch, context, generator, device, stop)
    scale = max(1, 160 // max(images.shape[1:]))
    real, rebuilt, dreamt = (
        to_rgb(np.asarray(clip), images.low, images.span)
        for clip in (batch.obs, reconstruction, dream)
    )
    frames = dream_grid(real, rebuilt, dreamt, context, scale)
    return write_video(path, frames, fps=5)
