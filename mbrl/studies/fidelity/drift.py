"""How long a dream stays true: open-loop imagination from real starts, compared with what happened.

A model observes `BURN_IN` real rows, then sees nothing more: it is given the real actions and draws
its codes from its own prior. At some horizons its state is decoded, freely, and the picture judged
by the same detectors as everywhere. Real futures are partly chance (a served ball, a sleeping
opponent), so no model can be right for ever; the same measures of a picture that stands still are
printed beside.

Source: the protocol is that of open-loop video prediction in PlaNet (arXiv:1811.04551) and Dreamer;
the measures on objects are our own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from mbrl.studies.fidelity.follow import BURN_IN, decoded, filtered, quantised, rng_of, stream
from mbrl.studies.fidelity.objects import Truth, distance, median, object_scores
from mbrl.studies.fidelity.scene import Scene
from mbrl.world_model.latent import Latent
from mbrl.world_model.model import WorldModel

if TYPE_CHECKING:
    from mbrl.studies.fidelity.frames import Frames

HORIZONS = (1, 5, 15, 30, 50)
"""Steps after the last observed row."""
RALLY = 15
"""Starts are chosen so that the ball is in play for at least so many steps, while there are any."""
BALL = "ball"


@dataclass(frozen=True)
class Rollouts:
    """B dreams from real starts.

    Attributes:
        starts: (B,) int64, first observed row of each.
        latents: by horizon, (B, ...) on the CPU; horizon 0 is the last observed row.
        reward: (B, K) expected reward of every dreamed step.
        continue_prob: (B, K) probability of going on of every dreamed step.
    """

    starts: NDArray[np.int64]
    latents: dict[int, Latent]
    reward: NDArray[np.float64]
    continue_prob: NDArray[np.float64]

    def rows(self, horizon: int) -> NDArray[np.int64]:
        """The real rows (B,) that horizon's states are a dream of."""
        return self.starts + (BURN_IN - 1 + horizon)


@torch.no_grad()
def roll_out(
    model: WorldModel,
    frames: "Frames",
    starts: NDArray[np.int64],
    horizons: Sequence[int],
    seed: int,
    role: str = "drift",
    *,
    begin: Latent | None = None,
    mode: bool = False,
) -> Rollouts:
    """Observe `BURN_IN` rows of each window, then dream on with the real actions.

    Args:
        model: in evaluation mode.
        frames: real rows.
        starts: (B,) first rows of windows that lie inside one episode up to the last horizon.
        horizons: which states to keep.
        seed: of the measurement.
        role: names the random streams.
        begin: (B, ...) where dreams begin, instead of observing.
        mode: dream with the prior's most likely codes instead of draws from it.
    """
    if begin is None:
        codes = stream(seed, f"{role}/codes", model.device)
        begin = filtered(model, frames, starts, BURN_IN, codes).latent[:, -1]
    latent = begin.to(model.device)
    generator = stream(seed, f"{role}/prior", model.device)
    kept = {0: latent.to("cpu")}
    rewards, going = [], []
    for step in range(1, max(horizons) + 1):
        action = frames.prev_action[starts + (BURN_IN - 1 + step)]
        imagined = model.imagine_step(
            latent, torch.as_tensor(action, device=model.device), generator, mode=mode
        )
        latent = imagined.latent
        rewards.append(imagined.reward.double().cpu().numpy())
        going.append(imagined.continue_prob.double().cpu().numpy())
        if step in horizons:
            kept[step] = latent.to("cpu")
    return Rollouts(starts, kept, np.stack(rewards, 1), np.stack(going, 1))


def rally_lengths(visible: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For each row of (B, K + 1), how many steps after the first it stays true; -1 if not at all.

    A ball that is visible at the start and at the two next rows has a rally of 2.
    """
    return np.where(visible.all(1), visible.shape[1], visible.argmin(1)) - 1


def drift(
    model: WorldModel,
    scene: Scene | None,
    frames: "Frames",
    seed: int,
    *,
    candidates: int = 512,
    drawn: int = 128,
    horizons: Sequence[int] = HORIZONS,
) -> dict[str, dict[str, float]]:
    """Measures by horizon, as strings ("15").

    Args:
        model: in evaluation mode.
        scene: the game's detectors; None gives pixels, rewards and endings only.
        frames: held-out rows.
        seed: of the measurement.
        candidates: starts that are dreamed from; rewards and endings are measured on all of them.
        drawn: starts whose states are decoded. Those with the ball in play for at least `RALLY`
            steps come first, the others, in random order, fill up.
        horizons: steps, increasing.

    Returns:
        For each horizon, NaN where there was nothing to measure:
        `NAME_recall` for each object: the share of dreams in which it is drawn within its radius of
            its real place and nothing like it beside; `NAME_near`: whatever is beside it;
            `NAME_present`: drawn anywhere in its region (see `object_scores`);
            `NAME_position_px`: median
            distance of the strongest thing drawn from the real place, of those where something is;
            `NAME_still_px`: the same if it had stayed where it was at the start; `NAME_frames`: how
            many dreams this is about: the object is really visible at the horizon and, if it is
            the ball, was so at every row from the start (a rally).
        `position_px`: the ball's, or the first object's in a game without a ball;
            `likeliest_recall`, `likeliest_px`: its recall and distance in dreams that begin as
            these and go on with the prior's likeliest codes.
        `pixel_mse`: mean squared difference of intensities in [0, 1] from the real frame, and
            `still_mse`, of the start frame instead.
        `reward_error`: mean |expected - real reward| of that one step; `reward_sum_error`: of the
            sums from the start; both with `_of_none`, what predicting no reward at all would get.
        `continue_error`: mean |probability of going on - whether it did|. Windows that go on to the
            longest horizon hold hardly an ending, so
        `ending_error`: mean probability of going on in dreams, of their own, whose last step ended
            the episode; `ending_frames`: how many there are.
    """
    longest = max(horizons)
    starts = frames.windows(BURN_IN + longest, candidates, rng_of(seed, "drift/windows"))
    rollouts = roll_out(model, frames, starts, horizons, seed)
    rallies = _rallies(scene, frames, rollouts, longest)
    chosen = np.argsort(-np.minimum(rallies, RALLY), kind="stable")[:drawn]
    generator = stream(seed, "drift/pixels", model.device)
    begin = rollouts.rows(0)[chosen]
    first = quantised(model, frames.obs[begin])
    origin = _truths(scene, first, frames, begin)
    if scene is not None:
        same = rollouts.latents[0][torch.as_tensor(chosen)]
        calm = roll_out(model, frames, starts[chosen], horizons, seed, begin=same, mode=True)
        calm_pixels = stream(seed, "drift/likeliest/pixels", model.device)
    report = {}
    for horizon in horizons:
        rows = rollouts.rows(horizon)[chosen]
        real = quantised(model, frames.obs[rows])
        index = torch.as_tensor(chosen)
        dream = decoded(model, rollouts.latents[horizon][index], generator)
        in_play = rallies[chosen] >= horizon
        judged = partial(_objects, scene, frames, rows, real, origin, in_play)
        report[str(horizon)] = {
            **judged(dream),
            "pixel_mse": squared_difference(dream, real, model.high),
            "still_mse": squared_difference(first, real, model.high),
            **_rewards(frames, rollouts, horizon),
            **_ending(model, frames, horizon, seed),
        }
        if scene is not None:
            scores = judged(decoded(model, calm.latents[horizon], calm_pixels))
            report[str(horizon)] |= _likeliest(scene, scores)
    return report


def _likeliest(scene: Scene, scores: dict[str, float]) -> dict[str, float]:
    """What is reported of the scores of dreams of likeliest codes."""
    wanted = {"likeliest_recall": f"{_lead(scene)}_recall", "likeliest_px": "position_px"}
    return {name: scores[one] for name, one in wanted.items() if one in scores}


def _ending(model: WorldModel, frames: "Frames", horizon: int, seed: int) -> dict[str, float]:
    """The ending part of one horizon's report, over all episodes that are long enough and ended."""
    first = np.maximum.accumulate(np.where(frames.is_first, np.arange(len(frames.is_first)), 0))
    ends = np.flatnonzero(frames.terminated)
    starts = ends - (BURN_IN - 1 + horizon)
    starts = starts[starts >= first[ends]]
    if not len(starts):
        return {"ending_error": math.nan, "ending_frames": 0.0}
    rollouts = roll_out(model, frames, starts, (horizon,), seed, role=f"drift/endings/{horizon}")
    going = float(rollouts.continue_prob[:, -1].mean())
    return {"ending_error": going, "ending_frames": float(len(starts))}


def squared_difference(a: NDArray[np.uint8], b: NDArray[np.uint8], high: int) -> float:
    """Mean squared difference of images of the same shape, in intensities of [0, 1]."""
    return float(np.square((a.astype(np.float64) - b.astype(np.float64)) / high).mean())


def _rallies(
    scene: Scene | None, frames: "Frames", rollouts: Rollouts, longest: int
) -> NDArray[np.int64]:
    """How long each start's ball stays in play; as long as can be in a game without one."""
    if scene is None or BALL not in scene.detectors or frames.ram is None:
        return np.full(len(rollouts.starts), longest)
    rows = rollouts.rows(0)[:, None] + np.arange(longest + 1)
    _, visible = scene.detectors[BALL].target.locate(frames.ram[rows.ravel()])
    return rally_lengths(visible.reshape(rows.shape))


def _truths(
    scene: Scene | None, images: NDArray[np.uint8], frames: "Frames", rows: NDArray[np.int64]
) -> dict[str, Truth]:
    return {} if scene is None or frames.ram is None else scene.truths(images, frames.ram[rows])


def _objects(
    scene: Scene | None,
    frames: "Frames",
    rows: NDArray[np.int64],
    real: NDArray[np.uint8],
    origin: dict[str, Truth],
    in_play: NDArray[np.bool_],
    dream: NDArray[np.uint8],
) -> dict[str, float]:
    """The object part of one horizon's report."""
    if scene is None or frames.ram is None:
        return {}
    contrasts = scene.contrasts(dream, frames.ram[rows])
    report: dict[str, float] = {}
    for name, place in scene.truths(real, frames.ram[rows]).items():
        counted = replace(place, visible=place.visible & in_play) if name == BALL else place
        scores = object_scores(scene.detectors[name], counted, contrasts)
        both = counted.visible & origin[name].visible
        report |= {
            f"{name}_recall": scores["recall"],
            f"{name}_near": scores["near"],
            f"{name}_present": scores["present"],
            f"{name}_position_px": scores["position_px"],
            f"{name}_still_px": median(distance(origin[name].place[both], counted.place[both])),
            f"{name}_frames": scores["frames"],
        }
    return {**report, "position_px": report[f"{_lead(scene)}_position_px"]}


def _lead(scene: Scene) -> str:
    """The object whose drift stands for all: the ball, or the first one of a game without."""
    return BALL if BALL in scene.detectors else next(iter(scene.detectors))


def _rewards(frames: "Frames", rollouts: Rollouts, horizon: int) -> dict[str, float]:
    """The reward and continue part of one horizon's report, over all candidates."""
    rows = rollouts.rows(0)[:, None] + np.arange(1, horizon + 1)
    real = frames.reward[rows].astype(np.float64)
    dreamed = rollouts.reward[:, :horizon]
    goes_on = 1.0 - frames.terminated[rows[:, -1]]
    return {
        "reward_error": float(np.abs(dreamed[:, -1] - real[:, -1]).mean()),
        "reward_error_of_none": float(np.abs(real[:, -1]).mean()),
        "reward_sum_error": float(np.abs(dreamed.sum(1) - real.sum(1)).mean()),
        "reward_sum_error_of_none": float(np.abs(real.sum(1)).mean()),
        "continue_error": float(np.abs(rollouts.continue_prob[:, horizon - 1] - goes_on).mean()),
    }
