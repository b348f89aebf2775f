"""Dreams are laid beside what happened: the right rows, rallies, rewards and endings."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from billiard import BRIGHT, DARK, EPISODE, GAME, Blind, Oracle, draw, named, numbers, play

from mbrl.studies.fidelity.drift import HORIZONS, drift, rally_lengths, roll_out, squared_difference
from mbrl.studies.fidelity.follow import BURN_IN
from mbrl.studies.fidelity.objects import Scene
from mbrl.world_model.latent import Latent

TRAIN, HELD_OUT = play(20), play(6, start=37, base=10_000)


def test_rallies_last_while_the_ball_is_seen():
    seen = np.array([[1, 1, 1, 1], [1, 1, 0, 1], [0, 1, 1, 1], [1, 0, 0, 0]], bool)
    assert rally_lengths(seen).tolist() == [3, 1, -1, 0]


def test_dreams_get_the_real_actions_and_are_laid_beside_the_right_rows():
    """The oracle itself refuses any action but the real one."""
    starts = np.array([3, 120, 234])
    rollouts = roll_out(Oracle(HELD_OUT), HELD_OUT, starts, (1, 7), 0)
    for horizon, latent in rollouts.latents.items():
        rows = starts + BURN_IN - 1 + horizon
        assert np.array_equal(rollouts.rows(horizon), rows)
        assert np.array_equal(named(latent.code).numpy(), numbers(HELD_OUT.obs[rows]).numpy())
    assert rollouts.latents.keys() == {0, 1, 7}
    first = starts[:, None] + BURN_IN + np.arange(7)
    assert np.array_equal(rollouts.reward, HELD_OUT.reward[first])


def drift_of(model, frames=HELD_OUT):
    return drift(model, Scene(model, GAME, TRAIN, 0), frames, 0, candidates=64, drawn=32)


def test_a_perfect_dream_does_not_drift():
    report = drift_of(Oracle(TRAIN, HELD_OUT))
    assert list(report) == [str(horizon) for horizon in HORIZONS]
    for scores in report.values():
        assert scores["ball_recall"] == scores["ball_present"] == scores["ball_near"] == 1.0
        assert scores["paddle_recall"] == scores["paddle_present"] == 1.0
        assert scores["position_px"] == scores["ball_position_px"] == 0.0
        assert scores["pixel_mse"] == scores["reward_error"] == scores["continue_error"] == 0.0
        assert scores["reward_sum_error"] == 0.0
        assert (scores["ending_error"], scores["ending_frames"]) == (0.0, 6)
    # the ball moves by five columns and one row a step, bouncing off the walls
    assert 4 < report["1"]["ball_still_px"] < 5.2
    assert report["1"]["still_mse"] > 0


def test_an_empty_dream_loses_everything():
    report = drift_of(Blind(TRAIN, HELD_OUT))
    for horizon, scores in report.items():
        assert scores["ball_recall"] == scores["ball_present"] == scores["paddle_near"] == 0.0
        assert np.isnan(scores["position_px"])
        assert scores["reward_error"] == scores["reward_error_of_none"]
        assert (scores["ending_error"], scores["ending_frames"]) == (1.0, 6)
        assert scores["reward_sum_error"] == scores["reward_sum_error_of_none"]
        expected = sum(1 for step in range(int(horizon))) / 10  # a reward every tenth row
        assert scores["reward_sum_error"] == pytest.approx(expected, abs=0.3)
    # four bright pixels of 256, and two that hold the frame's number
    assert report["1"]["pixel_mse"] > 4 * ((BRIGHT - DARK) / 255) ** 2 / 256


def test_a_ball_in_the_wrong_place_is_present_and_not_recalled():
    ram = HELD_OUT.ram.copy()
    ram[:, 0] = np.where(ram[:, 0] > 7, ram[:, 0] - 6, ram[:, 0] + 6)
    obs = draw(ram)
    obs[:, 0] = HELD_OUT.obs[:, 0]  # the number of the frame
    report = drift_of(Oracle(TRAIN, replace(HELD_OUT, obs=obs)))
    assert report["15"]["ball_present"] == report["15"]["paddle_recall"] == 1.0
    assert report["15"]["ball_recall"] == report["15"]["ball_near"] == 0.0
    assert report["15"]["position_px"] == 6.0


def test_dreams_of_likeliest_codes_are_free_of_the_noise_of_drawing_them():
    class Unsteady(Oracle):
        """Whatever it draws shows an empty field; its likeliest codes are right."""

        def imagine_step(self, latent, action, generator, *, mode=False):
            imagined = super().imagine_step(latent, action, generator)
            right = torch.full_like(imagined.latent.hidden, float(mode))
            return replace(imagined, latent=Latent(right, imagined.latent.code))

        def decode(self, latent, generator):
            seen = latent.hidden[:, 0].bool().view(-1, 1, 1, 1)
            return torch.where(seen, super().decode(latent, generator), DARK).to(torch.uint8)

    scores = drift_of(Unsteady(TRAIN, HELD_OUT))["15"]
    assert (scores["ball_recall"], scores["likeliest_recall"]) == (0.0, 1.0)
    assert scores["likeliest_px"] == 0.0 and np.isnan(scores["position_px"])


def test_balls_are_measured_in_rallies_and_paddles_always():
    ram = HELD_OUT.ram.copy()
    ram[:, 2] = np.arange(len(ram)) % EPISODE < 40  # no ball in the later part of each episode
    report = drift_of(Oracle(TRAIN, HELD_OUT), replace(HELD_OUT, ram=ram))
    assert report["50"]["ball_frames"] == 0 and np.isnan(report["50"]["ball_recall"])
    assert 0 < report["15"]["ball_frames"] < 32  # the field is still full of drawn balls
    assert report["50"]["paddle_frames"] == 32


def test_an_ending_is_dreamt_of_from_the_first_row_of_its_episode_on():
    rows = np.arange(len(HELD_OUT.obs))
    longest = BURN_IN + HORIZONS[-1]
    for length, ended in ((longest, 1), (longest - 1, 0)):  # of the episode that ends
        terminated = rows == 99
        is_first = np.isin(rows, [0, 100 - length, 100, 200])
        frames = replace(HELD_OUT, terminated=terminated, is_first=is_first)
        report = drift_of(Oracle(TRAIN, frames), frames)
        found = [report[str(horizon)]["ending_frames"] for horizon in HORIZONS]
        assert found == [1, 1, 1, 1, ended]
        assert np.isnan(report[str(HORIZONS[-1])]["ending_error"]) == (ended == 0)


def test_squared_difference_is_of_intensities_in_zero_to_one():
    a, b = np.zeros((1, 1, 2, 1), np.uint8), np.array([[[[255], [0]]]], np.uint8)
    assert squared_difference(a, b, 255) == 0.5
