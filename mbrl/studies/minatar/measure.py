"""Everything that is measured of one trained world model on one of MinAtar's games.

A *window* begins at a frame that was just seen, at least `SEEN` rows after the episode began, and
goes on for `LONGEST` more steps of the same episode. The model observes up to 16 rows, back to the
beginning of the episode at most, and then dreams with the actions that were really taken. After 0
dreamt steps its picture is of the frame it has just seen. Every picture is a free-running sample.

*F1* of a channel is 2 TP / (2 TP + FP + FN) over the cells of all windows; None where the channel
is empty in both. What may have ended by then is not counted against a model: a dream counts by the
probability that it gives to still going on, and a clone counts as long as it does.

*copy_last* lets the frame just seen stand for all that follow. *best_possible* is the real game,
cloned at the window's start and played on with the same actions and other random numbers. A model
that knows all of the game's state and draws what is random in it gets this in expectation. One that
draws the likeliest instead may get more.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from envs.minatar import GameCopy
from mbrl.errors import ReplayError
from mbrl.seeding import seed as derive
from mbrl.studies.fidelity.drift import roll_out
from mbrl.studies.fidelity.follow import BURN_IN, decoded, rng_of, stream
from mbrl.studies.fidelity.frames import Frames
from mbrl.studies.trial import plain
from mbrl.world_model.model import WorldModel

Rows = NDArray[np.int64]
Planes = NDArray[np.uint8]

HORIZONS = (0, 1, 5, 10)  # dreamt steps
LONGEST = max(HORIZONS)
SEEN = 8  # rows of its episode that have been seen when a window begins
Scores = dict[str, dict[str, float]]
"""F1 by horizon ("5") and channel."""


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    windows: int = 512  # dreams, or as many as there are
    clones: int = 8  # of the game at the start of every window
    batches: int = 16  # of the shape of training, for the terms of the loss


class Count:
    """Cells that are set in what was drawn, in what is real, and in both, by channel."""

    def __init__(self, channels: Sequence[str]) -> None:
        """Nothing counted yet."""
        self.channels = channels
        self._both, self._either = np.zeros((2, len(channels)))

    def add(self, drawn: Planes, real: Planes, weight: NDArray[Any] | None = None) -> None:
        """Count N pictures (N, H, W, C) of 0 and 1, each by its weight (N,), or by 1."""
        each = np.ones(len(real)) if weight is None else weight.astype(np.float64)
        self._both += each @ (drawn & real).sum((1, 2))
        self._either += each @ (drawn.astype(np.int64) + real).sum((1, 2))

    @property
    def f1(self) -> dict[str, float]:
        """F1 of each channel; NaN where nothing was set."""
        with np.errstate(invalid="ignore"):
            values = 2 * self._both / self._either
        return dict(zip(self.channels, values.tolist(), strict=True))


def windows(frames: Frames, count: int, rng: np.random.Generator) -> Rows:
    """Draw the first rows of `count` windows, or of as many as there are, without replacement."""
    rows, age = np.arange(len(frames.obs)), ages(frames)
    last = rows + LONGEST
    possible = (age >= SEEN - 1) & (rows >= BURN_IN - 1) & (last < len(rows))
    last = np.minimum(last, len(rows) - 1)
    possible &= (age[last] == age + LONGEST) & ~frames.terminated[last]
    found = np.flatnonzero(possible)
    return np.sort(rng.permutation(found)[:count])


def require_windows(name: str, starts: Rows) -> Rows:
    """The same starts; a ReplayError if there are none."""
    if not len(starts):
        raise ReplayError(
            f"{name}: expected episodes of {SEEN + LONGEST} rows or more, which a window needs, "
            f"got none; collect more with --steps, or let a better --policy play"
        )
    return starts


def ages(frames: Frames) -> Rows:
    """Steps since the beginning of each row's episode, (N,)."""
    rows = np.arange(len(frames.obs))
    return rows - np.maximum.accumulate(np.where(frames.is_first, rows, 0))


def measure(
    model: WorldModel,
    channels: Sequence[str],
    train: Frames,
    new: Frames,
    starts: Mapping[str, Rows],
    games: Sequence[GameCopy],
    seed: int,
    batch: tuple[int, int],
    sizes: Sizes,
) -> dict[str, Any]:
    """Measure one trained model; the same seed gives the same numbers.

    Args:
        model: in evaluation mode.
        channels: names of the planes.
        train: the episodes it was trained on.
        new: other episodes of the same policy.
        starts: of windows, by "train" and "held_out".
        games: behind the first frame of each held-out window.
        seed: of everything that is drawn.
        batch: sequences and rows of a batch of training.
        sizes: how much of everything.

    Returns:
        Numbers, None where there is no number. `held_out` and `train`: F1 by horizon and channel;
        `copy_last` and `best_possible`: the same, on the held-out windows. `least`: the smallest
        held-out F1 of any channel, by horizon; `least_of_best`: the smallest share of
        best_possible. `heads`: see `head_report`. `loss`: its terms on batches as in training.
        `windows`: how many there were.
    """
    frames = {"held_out": new, "train": train}
    held_out, rewards, going = dream_scores(model, channels, new, starts["held_out"], seed)
    trained, _, _ = dream_scores(model, channels, train, starts["train"], seed)
    best = clone_scores(channels, new, starts["held_out"], games, sizes.clones, seed)
    return plain(
        {
            "held_out": held_out,
            "train": trained,
            "copy_last": copy_scores(channels, new, starts["held_out"]),
            "best_possible": best,
            "least": {step: _least(scores) for step, scores in held_out.items()},
            "least_of_best": {
                step: _least({name: f1 / (best[step][name] or math.nan) for name, f1 in s.items()})
                for step, s in held_out.items()
            },
            "heads": head_report(model, new, starts["held_out"], rewards, going, seed),
            "loss": {
                name: loss_report(model, rows, batch, sizes.batches, seed)
                for name, rows in frames.items()
            },
            "windows": {name: float(len(rows)) for name, rows in starts.items()},
        }
    )


def dream_scores(
    model: WorldModel, channels: Sequence[str], frames: Frames, starts: Rows, seed: int
) -> tuple[Scores, NDArray[np.float64], NDArray[np.float64]]:
    """F1 of dreams; and of the first step of each its reward (N,) and chance to go on (N,)."""
    dreams = roll_out(model, frames, starts - (BURN_IN - 1), HORIZONS, seed, "minatar")
    generator = stream(seed, "minatar/pixels", model.device)
    alive = np.cumprod(dreams.continue_prob, 1)
    scores = {}
    for step in HORIZONS:
        count = Count(channels)
        drawn = decoded(model, dreams.latents[step], generator)
        count.add(drawn, _real(frames, starts + step), alive[:, step - 1] if step else None)
        scores[str(step)] = count.f1
    return scores, dreams.reward[:, 0], dreams.continue_prob[:, 0]


def copy_scores(channels: Sequence[str], frames: Frames, starts: Rows) -> Scores:
    """F1 of the frame just seen, as a picture of those that follow."""
    scores = {}
    for step in HORIZONS:
        count = Count(channels)
        count.add(_real(frames, starts), _real(frames, starts + step))
        scores[str(step)] = count.f1
    return scores


def clone_scores(
    channels: Sequence[str],
    frames: Frames,
    starts: Rows,
    games: Sequence[GameCopy],
    clones: int,
    seed: int,
) -> Scores:
    """F1 of the real game played on with other random numbers, over `clones` of each window."""
    counts = {step: Count(channels) for step in HORIZONS}
    for place, (start, game) in enumerate(zip(starts.tolist(), games, strict=True)):
        rows = start + np.arange(LONGEST + 1)
        real, actions = _real(frames, rows), frames.prev_action[rows[1:]].tolist()
        for clone in range(clones):
            played, alive = game.play(actions, derive(seed, "minatar/clones", place, clone))
            drawn = np.concatenate([real[:1], played])
            alive = np.concatenate([[True], alive])
            for step, count in counts.items():
                count.add(drawn[[step]], real[[step]], alive[[step]])
    return {str(step): count.f1 for step, count in counts.items()}


def head_report(
    model: WorldModel,
    frames: Frames,
    starts: Rows,
    rewards: NDArray[np.float64],
    going: NDArray[np.float64],
    seed: int,
) -> dict[str, float]:
    """What the heads say after one dreamt step, on new episodes.

    `goes_on`: mean probability of going on where the episode did (the windows); `ends`: where it
    ended, over all of `endings` endings. `paid`: the reward expected where one came, as a share of
    it, over all of `payments` such steps; NaN if there are none, as `ends`. `reward_error`: mean
    |expected - real| reward in the windows; `reward_error_of_none`: what predicting none gets.
    """
    real = frames.reward[starts + 1].astype(np.float64)
    ends, paid = math.nan, math.nan
    endings, payments = (
        _rows_before(frames, frames.terminated),
        _rows_before(frames, frames.reward),
    )
    if len(endings):
        dreams = roll_out(model, frames, endings - (BURN_IN - 1), (1,), seed, "minatar/endings")
        ends = float(dreams.continue_prob[:, 0].mean())
    if len(payments):
        dreams = roll_out(model, frames, payments - (BURN_IN - 1), (1,), seed, "minatar/payments")
        earned = np.abs(frames.reward[payments + 1])
        sign = np.sign(frames.reward[payments + 1])
        paid = float((dreams.reward[:, 0] * sign).sum() / earned.sum())
    return {
        "goes_on": float(going.mean()),
        "ends": ends,
        "endings": float(len(endings)),
        "paid": paid,
        "payments": float(len(payments)),
        "reward_error": float(np.abs(rewards - real).mean()),
        "reward_error_of_none": float(np.abs(real).mean()),
    }


def _rows_before(frames: Frames, marked: NDArray[Any]) -> Rows:
    """The rows before those that are marked (N,), if enough of their episode was seen."""
    found = np.flatnonzero((marked != 0) & (ages(frames) >= SEEN))
    return found[found >= BURN_IN] - 1


@torch.no_grad()
def loss_report(
    model: WorldModel, frames: Frames, batch: tuple[int, int], batches: int, seed: int
) -> dict[str, float]:
    """The terms of the loss, means over batches of (B, T) rows drawn as in training."""
    size, length = batch
    rng, generator = rng_of(seed, "minatar/loss"), stream(seed, "minatar/loss", model.device)
    sums: dict[str, float] = {}
    for _ in range(batches):
        starts = rng.integers(len(frames.obs) - length + 1, size=size)
        _, metrics, _ = model.loss(frames.batch(starts, length), generator)
        for name in ("nats_per_frame", "kl", "reward", "continue"):
            sums[name] = sums.get(name, 0.0) + float(metrics[name])
    return {name: total / batches for name, total in sums.items()}


def _real(frames: Frames, rows: Rows) -> Planes:
    return np.asarray(frames.obs[rows], np.uint8)


def _least(scores: Mapping[str, float]) -> float:
    """The smallest number; NaN if there is none."""
    return min((value for value in scores.values() if not math.isnan(value)), default=math.nan)
