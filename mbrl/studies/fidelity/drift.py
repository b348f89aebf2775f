"""How long a dream stays true: open-loop imagination from real starts, compared with what happened.

A model observes `BURN_IN` real rows, then sees nothing more: it is given the real actions and draws
its codes from its own prior. At some horizons its state is decoded, and the picture judged by the
same detectors as everywhere. Real futures are partly chance (a served ball, a sleeping opponent),
so no model can be right for ever. For each horizon there are:

`NAME_recall`, `_near`, `_present`, `_position_px` of each object: see `object_scores`;
    `NAME_still_px`: the distance if it had stayed where it was at the start; `NAME_frames`: how
    many dreams count: the object is really visible at the horizon; a ball at every row from the
    start (a rally).
`position_px`: of the ball, or of the first object in a game without; `likeliest_recall` and
    `likeliest_px`: its recall and distance in dreams that go on with the prior's most probable
    codes.
`pixel_mse`: mean squared difference of intensities in [0, 1] from the real frame, and `still_mse`,
    of the start frame instead.
`reward_error`: mean |expected - real reward| of that one step; `reward_sum_error`: of the sums from
    the start; both with `_of_none`, what predicting no reward at all would get.
`continue_error`: mean |probability of going on - whether it did|. Windows that go on to the longest
    horizon hold hardly an ending, so `ending_error` is the mean probability of going on in dreams,
    of their own, whose last step ended the episode; `ending_frames`: how many there are.

Source: the protocol is that of open-loop video prediction in PlaNet (arXiv:1811.04551) and Dreamer;
the measures on objects are our own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from mbrl.studies.fidelity.follow import BURN_IN, decoded, filtered, quantised, rng_of, stream
from mbrl.studies.fidelity.frames import Frames
from mbrl.studies.fidelity.games import Ram
from mbrl.studies.fidelity.objects import Images, Scene, distance, median, object_scores
from mbrl.world_model.latent import Latent
from mbrl.world_model.model import ImageWorldModel, WorldModel

Rows = NDArray[np.int64]

HORIZONS = (1, 5, 15, 30, 50)  # steps after the last observed row
RALLY = 15  # steps that the ball is in play after the starts that are drawn, while there are any
BALL = "ball"


@dataclass(frozen=True)
class Rollouts:
    """B dreams from real starts."""

    starts: Rows  # (B,), first observed row of each
    latents: dict[int, Latent]  # by horizon, (B, ...) on the CPU; 0 is the last observed row
    reward: NDArray[np.float64]  # (B, K), expected at every dreamt step
    continue_prob: NDArray[np.float64]  # (B, K), of every dreamt step

    def rows(self, horizon: int) -> Rows:
        """The real rows (B,) that horizon's states are a dream of."""
        return self.starts + (BURN_IN - 1 + horizon)


@torch.no_grad()
def roll_out(
    model: WorldModel,
    frames: Frames,
    starts: Rows,
    horizons: Sequence[int],
    seed: int,
    role: str = "drift",
    *,
    begin: Latent | None = None,
    mode: bool = False,
) -> Rollouts:
    """Observe `BURN_IN` rows from each of `starts` (B,) on, then dream on with the real actions.

    With `begin` (B, ...) dreams begin there instead of observing. `mode` dreams with the prior's
    most probable codes instead of draws from it. `role` names the random streams.
    """
    if begin is None:
        codes = stream(seed, f"{role}/codes", model.device)
        begin = filtered(model, frames, starts, BURN_IN, codes).latent[:, -1]
    latent = begin.to(model.device)
    generator = stream(seed, f"{role}/prior", model.device)
    states = {0: latent.to("cpu")}
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
            states[step] = latent.to("cpu")
    return Rollouts(starts, states, np.stack(rewards, 1), np.stack(going, 1))


def rally_lengths(visible: NDArray[np.bool_]) -> Rows:
    """For each row of (B, K + 1), how many steps after the first it stays true; or -1."""
    return np.where(visible.all(1), visible.shape[1], visible.argmin(1)) - 1


def drift(
    model: ImageWorldModel,
    scene: Scene | None,
    frames: Frames,
    seed: int,
    *,
    candidates: int = 512,
    drawn: int = 128,
) -> dict[str, dict[str, float]]:
    """The numbers of the module's description, by horizon as a string ("15").

    NaN where there was nothing to measure; without a scene, pixels, rewards and endings only.
    Rewards are measured on all `candidates`, the starts that are dreamt from. Pictures are `drawn`
    of those with the ball in play for `RALLY` steps first, the others fill up.
    """
    longest = max(HORIZONS)
    starts = frames.windows(BURN_IN + longest, candidates, rng_of(seed, "drift/windows"))
    rollouts = roll_out(model, frames, starts, HORIZONS, seed)
    rallies = _rallies(scene, frames, rollouts, longest)
    chosen = np.argsort(-np.minimum(rallies, RALLY), kind="stable")[:drawn]
    index = torch.as_tensor(chosen)
    generator = stream(seed, "drift/pixels", model.device)
    first = quantised(model, frames.obs[rollouts.rows(0)[chosen]])
    judge = None
    if scene is not None and frames.ram is not None:
        judge = _Judge(scene, frames.ram, first, rollouts.rows(0)[chosen], rallies[chosen])
        same = rollouts.latents[0][index]
        calm = roll_out(model, frames, starts[chosen], HORIZONS, seed, begin=same, mode=True)
        calm_pixels = stream(seed, "drift/likeliest/pixels", model.device)
    report = {}
    for horizon in HORIZONS:
        real = quantised(model, frames.obs[rollouts.rows(horizon)[chosen]])
        dream = decoded(model, rollouts.latents[horizon][index], generator)
        scores = {
            "pixel_mse": squared_difference(dream, real, model.images.span),
            "still_mse": squared_difference(first, real, model.images.span),
            **_rewards(frames, rollouts, horizon),
            **_ending(model, frames, horizon, seed),
        }
        if judge is not None:
            steady = judge.scores(horizon, real, decoded(model, calm.latents[horizon], calm_pixels))
            scores |= judge.scores(horizon, real, dream)
            scores["likeliest_recall"] = steady[f"{judge.lead}_recall"]
            scores["likeliest_px"] = steady["position_px"]
        report[str(horizon)] = scores
    return report


class _Judge:
    """Scores the objects of B dreams from the same starts."""

    def __init__(self, scene: Scene, ram: Ram, first: Images, begin: Rows, rallies: Rows) -> None:
        """Dreams begin at rows `begin` (B,), shown by `first`, with `rallies` (B,) to come.

        `lead` stands for all objects: the ball, or the first one of a game without.
        """
        self.scene, self.ram, self.begin, self.rallies = scene, ram, begin, rallies
        self.origin = scene.truths(first, self.ram[begin])
        self.lead = BALL if BALL in scene.detectors else next(iter(scene.detectors))

    def scores(self, horizon: int, real: Images, dream: Images) -> dict[str, float]:
        """The object part of a report, from what is and what is dreamt (B, ...)."""
        ram = self.ram[self.begin + horizon]
        contrasts = self.scene.contrasts(dream, ram)
        report: dict[str, float] = {}
        for name, place in self.scene.truths(real, ram).items():
            if name == BALL:
                place = replace(place, visible=place.visible & (self.rallies >= horizon))
            scores = object_scores(self.scene.detectors[name], place, contrasts)
            both = place.visible & self.origin[name].visible
            still = distance(self.origin[name].place[both], place.place[both])
            wanted = ("recall", "near", "present", "position_px", "frames")
            report |= {f"{name}_{score}": scores[score] for score in wanted}
            report[f"{name}_still_px"] = median(still)
        return {**report, "position_px": report[f"{self.lead}_position_px"]}


def _ending(model: WorldModel, frames: Frames, horizon: int, seed: int) -> dict[str, float]:
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


def squared_difference(a: Images, b: Images, high: float) -> float:
    """Mean squared difference of images of the same shape, in intensities of [0, 1]."""
    return float(np.square((a.astype(np.float64) - b.astype(np.float64)) / high).mean())


def _rallies(scene: Scene | None, frames: Frames, rollouts: Rollouts, longest: int) -> Rows:
    """How long each start's ball stays in play; as long as can be in a game without one."""
    if scene is None or BALL not in scene.detectors or frames.ram is None:
        return np.full(len(rollouts.starts), longest)
    rows = rollouts.rows(0)[:, None] + np.arange(longest + 1)
    _, visible = scene.detectors[BALL].target.locate(frames.ram[rows.ravel()])
    return rally_lengths(visible.reshape(rows.shape))


def _rewards(frames: Frames, rollouts: Rollouts, horizon: int) -> dict[str, float]:
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
