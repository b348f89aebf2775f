"""What is measured of a model that knows all, of one that knows nothing, and of real ones."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from billiard import EPISODE, GAME, Blind, Oracle, named, numbers, play
from gymnasium import spaces
from tiny import model_settings

from mbrl.studies.fidelity.follow import BURN_IN, follow, quantised
from mbrl.studies.fidelity.games import GAMES
from mbrl.studies.fidelity.information import ageing, information
from mbrl.studies.fidelity.measure import Sizes, measure
from mbrl.studies.fidelity.objects import Backdrops
from mbrl.studies.fidelity.readout import ahead_report, read, read_variables
from mbrl.world_model.latent import Latent, Observed
from mbrl.world_model.layouts import make_world_model

TRAIN, HELD_OUT = play(20), play(6, start=37, base=10_000)
SIZES = Sizes(
    sampled=96, informed=120, candidates=64, dreamed=32, fitted=700, scored=200, epochs=60
)


def real_model(**changes):
    torch.manual_seed(0)
    space = spaces.Box(0, 255, (16, 16, 1), np.uint8)
    return make_world_model(space, spaces.Discrete(3), model_settings(bf16=False, **changes)).eval()


# -- following ------------------------------------------------------------------------------------


def test_latents_belong_to_their_rows_and_burn_in_is_not_measured():
    followed = follow(Oracle(TRAIN), TRAIN, 60, 0, "test", length=40, keep_every=1, ahead=15)
    assert (followed.rows % EPISODE < EPISODE - 15).all()  # room for what comes after them
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
    unknown = np.array([[7]], np.uint8)
    with pytest.raises(ValueError, match=r"texture \[7\]: expected one of \[0, 5\]"):
        backdrops.of(unknown)
    assert Backdrops(images, ram, None).of(unknown).shape == (2, 2, 1)  # one serves all


# -- information ----------------------------------------------------------------------------------


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
    model.settings.decoder.likelihood = "mse"  # which is never called bits
    report = information(model, HELD_OUT, followed, 0)
    assert report["squared_error"] == 1.0
    assert report["shuffle_gain_squared_error"] == pytest.approx(10, rel=0.1)
    assert all(value is None for name, value in report.items() if "bits" in name)


def test_a_state_that_is_read_gains_what_another_ones_costs():
    class Remembering(Oracle):
        """Its state names the frame as well, and a wrong one costs 3 nats more."""

        def latents(self, number):
            latent = super().latents(number)
            return Latent(latent.code[..., :1], latent.code)

        def frame_nats(self, obs, latent, generator=None):
            wrong = numbers(obs) != named(latent.hidden)
            return super().frame_nats(obs, latent) + 3.0 * wrong

    model = Remembering(HELD_OUT)
    report = information(model, HELD_OUT, follow(model, HELD_OUT, 100, 0, "test", keep_every=4), 0)
    for name, nats in (("shuffle", 10), ("shuffle_hidden", 3), ("shuffle_both", 13)):
        assert report[f"{name}_gain_bits"] == pytest.approx(nats / math.log(2), rel=0.1)


def test_an_old_state_costs_what_it_costs_more_than_a_young_one():
    class Ageing(Oracle):
        """A row costs a nat for every hundred before it, and 50 with another one's code."""

        def observe(self, latent, prev_action, obs, is_first, generator):
            found = super().observe(latent, prev_action, obs, is_first, generator)
            age = torch.arange(obs.shape[1]).expand(obs.shape[:2])
            return replace(found, latent=Latent(age.unsqueeze(-1).float(), found.latent.code))

        def frame_nats(self, obs, latent, generator=None):
            return latent.hidden[:, 0] / 100 + 50.0 * (numbers(obs) != named(latent.code))

    row = np.arange(len(HELD_OUT.obs))
    long = replace(HELD_OUT, is_first=row % 256 == 0)
    report = ageing(Ageing(HELD_OUT), long, 0)
    assert report["aged_bits"] == pytest.approx((256 - 16) / 100 / math.log(2), rel=1e-5)
    assert report["aged_squared_error"] is None
    model = Ageing(HELD_OUT)
    model.settings.decoder.likelihood = "mse"
    report = ageing(model, long, 0)
    assert report["aged_squared_error"] == pytest.approx(2.4) and report["aged_bits"] is None
    assert ageing(Ageing(HELD_OUT), HELD_OUT, 0) == {"aged_bits": None, "aged_squared_error": None}


RECURRENT, GAUSSIAN = {"posterior": "recurrent"}, {"code": {"kind": "gaussian"}}
PAST = {"encoder": {"subtract_past": True}}


@pytest.mark.parametrize("changes", [{}, RECURRENT, GAUSSIAN, PAST])
def test_the_rate_is_the_kl_of_the_loss(changes):
    model = real_model(decoder={"kind": "deconv"}, **changes)
    batch = HELD_OUT.batch(np.array([0, 130]), 12)
    _, metrics, _ = model.loss(batch, torch.Generator().manual_seed(5))
    start = model.initial(2, model.device)
    seen = model.observe(start, *model.inputs(batch), torch.Generator().manual_seed(5))
    dynamics, static = model.rates(Observed(seen.latent.flatten(), seen.posterior.flatten(0, 1)))
    assert float(dynamics.mean()) == pytest.approx(float(metrics["kl"]), rel=1e-4)
    assert static.shape == (24,) and (static > 0).all()


# -- everything -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def perfect():
    return measure(Oracle(TRAIN, HELD_OUT), GAME, TRAIN, HELD_OUT, 0, SIZES)


def test_a_perfect_model_measures_perfect(perfect):
    ball, paddle = perfect["objects"]["ball"], perfect["objects"]["paddle"]
    assert perfect["ball_recall"] == perfect["paddle_recall"] == 1.0
    assert perfect["centroid_px"] == perfect["position_px"] == 0.0
    assert ball["recalled"] == ball["frames"] > 20
    assert ball["precision"] == paddle["precision"] == 1.0
    # the ball is somewhere in 15 x 13 pixels, and within 3 of another moment's by chance
    assert ball["shuffled_recall"] < 0.5
    assert perfect["reconstruction"] == {"mse": 0.0, "psnr_db": None, "frames": 96.0}
    assert perfect["nats_per_frame"] == 2.0
    assert perfect["shuffle_gain_bits"] > 9 / math.log(2)
    assert perfect["drift"]["15"]["ball_recall"] == 1.0
    assert perfect["information"]["aged_bits"] is None  # no episode is that long
    assert perfect["sample_ms_per_frame"] > 0
    assert perfect["nuisance"] == {}
    assert json.loads(json.dumps(perfect, allow_nan=False)) == perfect


def test_probes_read_the_oracles_code_and_not_its_state(perfect):
    probes, f1, positions = perfect["probes"], perfect["probe_f1"], perfect["positions"]
    majority = probes["majority"]["f1"]
    assert "visible" not in probes["z"]["f1"]  # almost always 1: too little entropy
    assert probes["z"]["ridge_r2"]["mean"] > 0.99
    assert abs(probes["h"]["ridge_r2"]["mean"]) < 0.05  # its state is a constant
    assert probes["h"]["f1"]["ball_row"] == pytest.approx(majority["ball_row"], abs=0.02)
    assert f1["ball"] == pytest.approx((f1["ball_row"] + f1["ball_column"]) / 2)
    assert f1["small"] == f1["ball"] and f1["mean"] > 3 * majority["mean"]
    assert positions["z"]["ball"]["px"] < 0.2 < positions["h"]["ball"]["px"]
    assert perfect["ahead"].keys() == {"0", "1", "5", "15"}
    assert perfect["rows"]["copies_dropped"] == 0 and perfect["rows"]["test"] >= 200


def test_what_is_known_ahead_is_asked_of_the_rows_that_come():
    class Seer(Oracle):
        """Its state is where the ball will be five rows on."""

        def latents(self, number):
            latent = super().latents(number)
            here = number.flatten().tolist()
            later = torch.tensor([n + 5 if n + 5 in self.known else n for n in here])
            return Latent(super().latents(later.view(number.shape)).code, latent.code)

    reading, _ = read(Seer(TRAIN, HELD_OUT), TRAIN, HELD_OUT, 0, fitted=700, scored=200)
    known = {k: scores["ball_row"] for k, scores in ahead_report(GAME, reading).items()}
    assert known["5"] > 0.99
    assert max(known[k] for k in ("0", "1", "15")) < 0.95


def test_a_blind_model_keeps_nothing():
    report = measure(Blind(TRAIN, HELD_OUT), GAME, TRAIN, HELD_OUT, 0, SIZES)
    assert report["ball_recall"] == 0.0
    assert report["centroid_px"] is None and report["position_px"] is None
    assert report["objects"]["ball"]["shuffled_recall"] == 0.0
    assert report["shuffle_gain_bits"] == 0.0
    assert report["bits_per_frame"] == pytest.approx(7 / math.log(2))
    majority = report["probes"]["majority"]["f1"]["mean"]
    assert report["probe_f1"]["mean"] == pytest.approx(majority, abs=0.02)


def test_a_median_of_a_few_recalled_frames_is_not_printed():
    few = replace(SIZES, sampled=16, epochs=2)  # fewer than 20 frames
    model = Oracle(TRAIN, HELD_OUT).train()
    report = measure(model, GAME, TRAIN, HELD_OUT, 0, few)
    assert model.training
    assert report["ball_recall"] == 1.0 and 0 < report["objects"]["ball"]["recalled"] < 20
    assert report["centroid_px"] is None and report["position_px"] == 0.0


def test_the_same_variables_are_probed_whatever_rows_are_drawn():
    ram = TRAIN.ram.copy()
    ram[:, 3] = np.arange(len(ram)) < 0.4 * len(ram)  # 0.67 nats, though constant at the end
    always = ("ball_row", "ball_column")
    assert read_variables(GAME, replace(TRAIN, ram=ram)) == (*always, "paddle_row")
    ram[:, 3] = np.arange(len(ram)) < 0.1 * len(ram)  # 0.33 nats
    assert read_variables(GAME, replace(TRAIN, ram=ram)) == always


def timeless(report):
    timed = ("_ms_per_frame", "_s")
    return {name: value for name, value in report.items() if not name.endswith(timed)}


@pytest.mark.parametrize("kind", ["deconv", "pixelcnn", "mse"])
def test_a_real_model_is_measured_the_same_twice_and_left_as_it_was(kind):
    decoder = {"kind": "deconv", "likelihood": "mse"} if kind == "mse" else {"kind": kind}
    model = real_model(decoder=decoder)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    small = replace(SIZES, epochs=3)
    reports = [measure(model, GAME, TRAIN, HELD_OUT, 7, small) for _ in range(2)]
    assert timeless(reports[0]) == timeless(reports[1])
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not model.training
    assert (reports[0]["bits_per_frame"] is None) == (kind == "mse")
    assert (reports[0]["squared_error"] is None) == (kind != "mse")


def test_a_game_without_memory_gives_pixels_bits_and_drift_only():
    train, held_out = (replace(frames, ram=None) for frames in (TRAIN, HELD_OUT))
    report = measure(Oracle(TRAIN, HELD_OUT), GAMES["car_racing"], train, held_out, 0, SIZES)
    assert report["reconstruction"]["mse"] == report["drift"]["15"]["pixel_mse"] == 0.0
    assert report["bits_per_frame"] == pytest.approx(1 / math.log(2))
    assert not report.keys() & {"objects", "position_px", "probes", "probe_f1", "rows"}
