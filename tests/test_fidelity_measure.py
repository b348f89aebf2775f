import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from billiard import BRIGHT, DARK, EPISODE, GAME, Blind, Oracle, draw, named, numbers, play
from gymnasium import spaces
from tiny import model_settings

from mbrl.errors import ReplayError
from mbrl.fidelity.cost import one_thread, train_ms_per_frame
from mbrl.fidelity.drift import HORIZONS, drift, rally_lengths, roll_out, squared_difference
from mbrl.fidelity.follow import BURN_IN, follow, quantised
from mbrl.fidelity.games import GAMES
from mbrl.fidelity.information import information, rates, strangers
from mbrl.fidelity.measure import Sizes, measure, plain
from mbrl.fidelity.readout import read_variables
from mbrl.fidelity.scene import Backdrops, Scene, alone_in_frames
from mbrl.world_model.model import WorldModel

TRAIN, HELD_OUT = play(20), play(6, start=37, base=10_000)
SIZES = Sizes(
    sampled=96,
    informed=120,
    candidates=64,
    dreamed=32,
    fitted=700,
    scored=200,
    epochs=60,
    timed=(2, 20),
)


def real_model(**changes):
    torch.manual_seed(0)
    space = spaces.Box(0, 255, (16, 16, 1), np.uint8)
    return WorldModel(space, spaces.Discrete(3), model_settings(bf16=False, **changes)).eval()


# -- following ------------------------------------------------------------------------------------


def test_latents_belong_to_their_rows_and_burn_in_is_not_measured():
    followed = follow(Oracle(TRAIN), TRAIN, 60, 0, "test", length=40, keep_every=1)
    assert torch.equal(followed.posterior[:, :1], followed.latent.code[:, :1])
    backwards = np.arange(len(followed.rows))[::-1].copy()
    taken = followed.take(backwards)
    assert torch.equal(taken.posterior, followed.posterior.flip(0))
    assert len(followed.rows) >= 60
    numbers_seen = named(followed.latent.code).numpy()
    assert np.array_equal(numbers_seen, numbers(TRAIN.obs[followed.rows]).numpy())
    windows = np.split(followed.rows, np.flatnonzero(np.diff(followed.rows) != 1) + 1)
    early = [rows for rows in windows if rows[0] % EPISODE < BURN_IN]
    assert all(rows[0] % EPISODE == 0 for rows in early)  # only where the episode itself begins


def test_rows_leave_room_for_what_comes_after_them():
    followed = follow(Oracle(TRAIN), TRAIN, 200, 0, "test", length=40, ahead=15)
    assert (followed.rows % EPISODE < EPISODE - 15).all()


def test_the_same_seed_follows_the_same_rows():
    rows = [follow(Oracle(TRAIN), TRAIN, 50, seed, "test").rows for seed in (3, 3, 4)]
    assert np.array_equal(rows[0], rows[1]) and not np.array_equal(rows[0], rows[2])


def test_images_are_measured_in_the_levels_of_the_model():
    model = real_model(decoder={"levels": 2, "kind": "deconv"})
    assert sorted(set(quantised(model, HELD_OUT.obs[:, 1:]).ravel().tolist())) == [64, 192]


def test_every_texture_has_its_own_backdrop():
    images = np.full((6, 2, 2, 1), 10, np.uint8)
    ram = np.array([[0], [0], [0], [5], [5], [5]], np.uint8)
    images[3:] = 90
    images[0, 0, 0] = 255  # an object passing by
    backdrops = Backdrops(images, ram, 0)
    assert backdrops.of(ram[2:4])[:, 0, 0, 0].tolist() == [10.0, 90.0]
    assert backdrops.of(ram[:3])[0].max() == 10.0
    with pytest.raises(ValueError, match=r"texture \[7\]: expected one of \[0, 5\]"):
        backdrops.of(np.array([[7]], np.uint8))


def test_one_backdrop_serves_a_game_without_textures():
    images = np.full((3, 2, 2, 1), 10, np.uint8)
    assert Backdrops(images, np.zeros((3, 1), np.uint8), None).of(
        np.array([[9]], np.uint8)
    ).shape == (2, 2, 1)


# -- information ----------------------------------------------------------------------------------


def test_strangers_are_never_oneself_and_each_once():
    partner = strangers(50, np.random.default_rng(0))
    assert (partner != np.arange(50)).all() and sorted(partner) == list(range(50))


def test_rate_distortion_and_shuffle_gain_by_hand():
    model = Oracle(HELD_OUT)
    followed = follow(model, HELD_OUT, 100, 0, "test", keep_every=4)
    rows = len(set(followed.rows.tolist()))
    report = information(model, HELD_OUT, followed, 0)
    assert report["nats_per_frame"] == 2.0 and report["nats_to_static_prior"] == 3.0
    assert report["bits_per_frame"] == pytest.approx(1 / math.log(2))
    assert report["bits_per_pixel"] == pytest.approx(1 / math.log(2) / 256)
    assert report["bits_in_all"] == pytest.approx(3 / math.log(2))
    assert report["shuffle_hidden_gain_bits"] == 0.0
    # 10 nats for a wrong code; a row drawn twice may meet itself
    assert report["shuffle_gain_bits"] == pytest.approx(10 / math.log(2), rel=0.1)
    assert report["shuffle_both_gain_bits"] == report["shuffle_gain_bits"]
    assert report["squared_error"] is None and rows > 50


def test_a_code_that_is_not_read_gains_nothing():
    report = information(Blind(HELD_OUT), HELD_OUT, follow(Blind(), HELD_OUT, 50, 0, "test"), 0)
    assert report["shuffle_gain_bits"] == 0.0
    assert report["bits_per_frame"] == pytest.approx(7 / math.log(2))


def test_squared_error_is_never_called_bits():
    model = Oracle(HELD_OUT)
    model.settings.decoder.likelihood = "mse"
    report = information(model, HELD_OUT, follow(model, HELD_OUT, 50, 0, "test"), 0)
    assert report["squared_error"] == 1.0
    assert report["shuffle_gain_squared_error"] == pytest.approx(10, rel=0.1)
    assert all(value is None for name, value in report.items() if "bits" in name)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"posterior": "recurrent"},
        {"code": {"kind": "gaussian"}},
        {"encoder": {"subtract_past": True}},
    ],
)
def test_the_rate_is_the_kl_of_the_loss(changes):
    model = real_model(decoder={"kind": "deconv"}, **changes)
    batch = HELD_OUT.batch(np.array([0, 130]), 12)
    _, metrics, _ = model.loss(batch, torch.Generator().manual_seed(5))
    seen = model.filter(batch, torch.Generator().manual_seed(5))
    dynamics, static = rates(model, seen.posterior.flatten(0, 1), seen.latent.hidden.flatten(0, 1))
    assert float(dynamics.mean()) == pytest.approx(float(metrics["kl"]), rel=1e-4)
    assert static.shape == (24,) and (static > 0).all()


# -- drift ----------------------------------------------------------------------------------------


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


def drift_of(model, frames=HELD_OUT, scene=True):
    made = Scene(model, GAME, TRAIN, 0) if scene else None
    return drift(model, made, frames, 0, candidates=64, drawn=32)


def test_a_perfect_dream_does_not_drift():
    report = drift_of(Oracle(TRAIN, HELD_OUT))
    assert list(report) == [str(horizon) for horizon in HORIZONS]
    for scores in report.values():
        assert scores["ball_recall"] == scores["ball_present"] == scores["ball_near"] == 1.0
        assert scores["paddle_recall"] == scores["paddle_present"] == 1.0
        assert scores["position_px"] == scores["ball_position_px"] == 0.0
        assert scores["pixel_mse"] == scores["reward_error"] == scores["continue_error"] == 0.0
        assert scores["reward_sum_error"] == 0.0
    # the ball moves by five columns and one row a step, bouncing off the walls
    assert 4 < report["1"]["ball_still_px"] < 5.2
    assert report["1"]["still_mse"] > 0


def test_an_empty_dream_loses_everything():
    report = drift_of(Blind(TRAIN, HELD_OUT))
    for horizon, scores in report.items():
        assert scores["ball_recall"] == scores["ball_present"] == scores["paddle_near"] == 0.0
        assert np.isnan(scores["position_px"])
        assert scores["reward_error"] == scores["reward_error_of_none"]
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


def test_balls_are_measured_in_rallies_and_paddles_always():
    ram = HELD_OUT.ram.copy()
    ram[:, 2] = np.arange(len(ram)) % EPISODE < 40  # no ball in the later part of each episode
    report = drift_of(Oracle(TRAIN, HELD_OUT), replace(HELD_OUT, ram=ram))
    assert report["50"]["ball_frames"] == 0 and np.isnan(report["50"]["ball_recall"])
    assert 0 < report["15"]["ball_frames"] < 32  # the field is still full of drawn balls
    assert report["50"]["paddle_frames"] == 32


def test_without_memory_drift_is_in_pixels_and_rewards():
    report = drift_of(Oracle(HELD_OUT), scene=False)
    assert report["15"]["pixel_mse"] == 0.0 and "ball_recall" not in report["15"]


def test_episodes_too_short_for_a_dream_are_refused():
    short = replace(HELD_OUT, is_first=np.arange(len(HELD_OUT.obs)) % 20 == 0)
    with pytest.raises(ReplayError, match="at least 66 rows"):
        drift_of(Oracle(HELD_OUT), short, scene=False)


def test_squared_difference_is_of_intensities_in_zero_to_one():
    a, b = np.zeros((1, 1, 2, 1), np.uint8), np.array([[[[255], [0]]]], np.uint8)
    assert squared_difference(a, b, 255) == 0.5
    assert squared_difference(a, b // 255, 1) == 0.5


def test_whether_an_object_is_alone_is_the_same_for_every_model_and_seed():
    doubled = replace(TRAIN, obs=TRAIN.obs.copy())
    half = np.random.default_rng(0).random(len(doubled.obs)) < 0.5
    doubled.obs[half, 2:4, 12:14] = BRIGHT  # a second ball in half of the frames
    for frames in (TRAIN, doubled):
        wanted = alone_in_frames(GAME, frames)
        for levels in (2, 16):
            model = real_model(decoder={"levels": levels, "kind": "deconv"})
            for seed in range(3):
                found = Scene(model, GAME, frames, seed).detectors
                assert {name: one.alone for name, one in found.items()} == wanted
    assert alone_in_frames(GAME, TRAIN)["ball"]


# -- everything -----------------------------------------------------------------------------------


def test_a_perfect_model_measures_perfect():
    model = Oracle(TRAIN, HELD_OUT).train()
    report = measure(model, GAME, TRAIN, HELD_OUT, 0, SIZES)
    assert model.training
    assert report["ball_recall"] == report["paddle_recall"] == 1.0
    assert report["centroid_px"] == report["position_px"] == 0.0
    assert report["objects"]["ball"]["recalled"] == report["objects"]["ball"]["frames"] > 20
    assert report["objects"]["ball"]["precision"] == report["objects"]["paddle"]["precision"] == 1.0
    # the ball is somewhere in 15 x 13 pixels, and within 3 of another moment's by chance
    assert report["objects"]["ball"]["shuffled_recall"] < 0.5
    assert report["reconstruction"] == {"mse": 0.0, "psnr_db": None, "frames": 96.0}
    assert report["nats_per_frame"] == 2.0
    assert report["shuffle_gain_bits"] > 9 / math.log(2)
    assert report["drift"]["15"]["ball_recall"] == 1.0
    assert report["drift"]["15"]["position_px"] == 0.0
    assert report["train_ms_per_frame"] > 0 and report["sample_ms_per_frame"] > 0
    assert report["nuisance"] == {}
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_probes_read_the_oracles_code_and_not_its_state():
    report = measure(Oracle(TRAIN, HELD_OUT), GAME, TRAIN, HELD_OUT, 0, SIZES)
    probes, f1 = report["probes"], report["probe_f1"]
    assert "visible" not in probes["z"]["f1"]  # almost always 1: too little entropy
    assert probes["z"]["ridge_r2"]["mean"] > 0.99
    assert abs(probes["h"]["ridge_r2"]["mean"]) < 0.05  # its state is a constant
    assert probes["h"]["f1"]["ball_row"] == pytest.approx(
        probes["majority"]["f1"]["ball_row"], abs=0.02
    )
    assert f1["ball"] == pytest.approx((f1["ball_row"] + f1["ball_column"]) / 2)
    assert f1["small"] == f1["ball"] and f1["mean"] > 3 * probes["majority"]["f1"]["mean"]
    assert report["positions"]["z"]["ball"]["px"] < 0.2 < report["positions"]["h"]["ball"]["px"]
    assert report["ahead"].keys() == {"0", "1", "5", "15"}
    assert report["rows"]["copies_dropped"] == 0 and report["rows"]["test"] >= 200


def test_a_nuisance_is_read_from_a_code_that_holds_it_and_from_no_other():
    held = replace(GAME, variables={**GAME.variables, "noise_id": GAME.variables["ball_row"]})
    report = measure(Oracle(TRAIN, HELD_OUT), held, TRAIN, HELD_OUT, 0, SIZES)
    noise = report["nuisance"]["noise_id"]
    assert noise["z"] > 2 * noise["chance"] and noise["z_network"] > 2 * noise["chance"]
    for reader in ("h", "h_network"):
        assert noise[reader] == pytest.approx(noise["chance"], abs=0.05)
    assert "noise_id" not in report["probes"]["z"]["f1"]


def test_a_blind_model_keeps_nothing():
    report = measure(Blind(TRAIN, HELD_OUT), GAME, TRAIN, HELD_OUT, 0, SIZES)
    assert report["ball_recall"] == 0.0
    assert report["centroid_px"] is None and report["position_px"] is None
    assert report["objects"]["ball"]["shuffled_recall"] == 0.0
    assert report["shuffle_gain_bits"] == 0.0
    assert report["probe_f1"]["mean"] == pytest.approx(
        report["probes"]["majority"]["f1"]["mean"], abs=0.02
    )


def test_a_median_of_a_few_recalled_frames_is_not_printed():
    few = replace(SIZES, sampled=16, epochs=2)  # fewer than 20 frames
    report = measure(Oracle(TRAIN, HELD_OUT), GAME, TRAIN, HELD_OUT, 0, few)
    assert report["ball_recall"] == 1.0 and 0 < report["objects"]["ball"]["recalled"] < 20
    assert report["centroid_px"] is None and report["position_px"] == 0.0


def test_the_same_variables_are_probed_whatever_rows_are_drawn():
    ram = TRAIN.ram.copy()
    ram[:, 3] = np.arange(len(ram)) < 0.4 * len(ram)  # 0.67 nats, though constant at the end
    assert read_variables(GAME, replace(TRAIN, ram=ram)) == (
        "ball_row",
        "ball_column",
        "paddle_row",
    )
    ram[:, 3] = np.arange(len(ram)) < 0.1 * len(ram)  # 0.33 nats
    assert read_variables(GAME, replace(TRAIN, ram=ram)) == ("ball_row", "ball_column")


def timeless(report):
    return {
        name: value for name, value in report.items() if not name.endswith(("_ms_per_frame", "_s"))
    }


@pytest.mark.parametrize("likelihood", ["categorical", "mse"])
def test_a_real_model_is_measured_the_same_twice_and_left_as_it_was(likelihood):
    model = real_model(decoder={"kind": "deconv", "likelihood": likelihood})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    small = replace(SIZES, epochs=3)
    reports = [measure(model, GAME, TRAIN, HELD_OUT, 7, small) for _ in range(2)]
    assert timeless(reports[0]) == timeless(reports[1])
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not model.training
    assert (reports[0]["bits_per_frame"] is None) == (likelihood == "mse")
    assert (reports[0]["squared_error"] is None) == (likelihood != "mse")


def test_a_pixelcnn_can_be_measured():
    report = measure(real_model(), GAME, TRAIN, HELD_OUT, 0, replace(SIZES, epochs=2))
    assert report["bits_per_frame"] > 0 and 0 <= report["ball_recall"] <= 1


def test_a_game_without_memory_gives_pixels_bits_and_drift_only():
    train, held_out = (replace(frames, ram=None) for frames in (TRAIN, HELD_OUT))
    report = measure(Oracle(TRAIN, HELD_OUT), GAMES["car_racing"], train, held_out, 0, SIZES)
    assert report.keys() == {
        "sample_ms_per_frame",
        "train_ms_per_frame",
        "reconstruction",
        "nats_per_frame",
        "bits_per_frame",
        "shuffle_gain_bits",
        "squared_error",
        "information",
        "drift",
        "cpu_s",
    }


def test_timing_leaves_the_model_and_the_threads_alone():
    model, threads = real_model(), torch.get_num_threads()
    before = [weight.clone() for weight in model.parameters()]
    assert train_ms_per_frame(model, TRAIN, 0, sequences=2, length=8, updates=1) > 0
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    torch.set_num_threads(2)
    try:
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_what_is_no_number_becomes_none():
    tree = {"a": {"1": np.float64(0.5), "b": float("nan")}, "c": math.inf, "d": None, "e": 3}
    assert plain(tree) == {"a": {"1": 0.5, "b": None}, "c": None, "d": None, "e": 3.0}
