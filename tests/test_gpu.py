"""What a GPU alone can show: the numbers of the CPU, and runs that begin and end on it."""

import copy
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fidelity_trials import make_trial
from simple_world import WORLD_MODELS_2018, make, random_batch
from test_learn_model import ATARI, arguments, episode
from test_pixelcnn_sampling import decoder, drawing, one_by_one
from test_train import lines_with_finite_losses
from tiny import config, model_settings

from agents.numerics import restore_generator
from benchmarks.launches import count
from mbrl.episode import SequenceBatch
from mbrl.errors import TrainingError
from mbrl.feed import feed
from mbrl.learn_model import WorldModelLearner
from mbrl.replay import ReplayStore
from mbrl.run import checkpoint
from mbrl.studies.fidelity.train import run as run_trial
from mbrl.train import train
from mbrl.world_model.decoders.pixelcnn import sample_blocks
from mbrl.world_model.latent import Latent

pytestmark = pytest.mark.gpu

DECODERS: dict[str, dict[str, Any]] = {
    "pixelcnn": {},
    "categorical": {"decoder": {"kind": "deconv"}},
    "mse": {"decoder": {"kind": "deconv", "likelihood": "mse", "levels": 2}},
    "flow": {"decoder": {"kind": "flow", "levels": 2, "flow": {"scales": 2, "steps": 2}}},
    "past": ATARI,
    "2018": WORLD_MODELS_2018,
}


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """Convolutions in float32, which a GPU rounds to ten bits by itself."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture
def store(tmp_path: Path) -> ReplayStore:
    made = ReplayStore(tmp_path / "replay", env_id="x")
    made.commit([episode("1"), episode("2")], "c0", 38)
    return made


def learner(store: ReplayStore, device: str, **changes: Any) -> WorldModelLearner:
    made = WorldModelLearner(
        **{**arguments(store), "model": model_settings(**changes), "device": device}
    )
    made.refresh()
    return made


@pytest.mark.parametrize("changes", DECODERS.values(), ids=DECODERS)
def test_a_gpu_gives_the_numbers_of_the_cpu(changes: dict[str, Any]) -> None:
    here = make(bf16=False, **changes).eval()
    there = copy.deepcopy(here).cuda()
    batch = random_batch()
    obs = torch.as_tensor(batch.obs).flatten(0, 1)
    codes = torch.rand(len(obs), here.code.size, generator=torch.Generator().manual_seed(0))
    hidden = torch.rand(len(obs), 24, generator=torch.Generator().manual_seed(1))
    latent = Latent(hidden, codes)

    def numbers(model: Any) -> list[torch.Tensor]:
        place = latent.to(model.device)
        prev_action, images, is_first = model.inputs(batch)
        action, start = model.action_vector(prev_action), model.initial(len(images), model.device)
        seen, _ = model.encoder.look(start.memory, model._frames(images), is_first)
        codes = place.code.unflatten(0, is_first.shape)
        made = [
            model.encoder(seen),
            model.dynamics.sequence(codes, action, is_first, start),
            model.dynamics.step(place.hidden, place.code, action.flatten(0, 1)),
            model.dynamics.prior(place.hidden),
            *model.heads.predict(place.features),
        ]
        if changes != DECODERS["flow"]:  # its bound draws noise, and the streams are not the same
            made.append(model.frame_nats(images.flatten(0, 1), place))
        return [one.detach().cpu() for one in made]

    for expected, got in zip(numbers(here), numbers(there), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("changes", DECODERS.values(), ids=DECODERS)
def test_learning_on_a_gpu_lowers_the_loss_as_on_the_cpu(
    store: ReplayStore, changes: dict[str, Any], bf16: bool
) -> None:
    losses = {}
    for device in ("cpu", "cuda"):
        one = learner(store, device, bf16=bf16, **changes)
        first, _ = one.learn(2)
        one.learn(60)
        last, starts = one.learn(10)
        assert one.model.device.type == starts.hidden.device.type == device
        assert all(value.device.type == "cpu" for value in one.model_state().values())
        assert last["loss"] < first["loss"]
        losses[device] = first["loss"], last["loss"]
        one.close()
    # codes are drawn from other streams, and the data are noise
    assert losses["cuda"][0] == pytest.approx(losses["cpu"][0], rel=0.3)
    assert losses["cuda"][1] == pytest.approx(losses["cpu"][1], rel=0.2)


def test_a_loss_that_is_not_finite_leaves_the_weights_on_a_gpu(tmp_path: Path) -> None:
    broken = ReplayStore(tmp_path, env_id="x")
    broken.commit([episode("1", reward=float("nan"))], "c0", 19)
    one = learner(broken, "cuda")
    before = one.model_state()
    with pytest.raises(TrainingError, match="not finite"):
        one.learn(2)
    weights = dict(one.model.named_parameters())
    assert all(torch.equal(before[name], value.cpu()) for name, value in weights.items())
    one.close()


@pytest.mark.parametrize(("begun", "goes_on"), [("cuda", "cuda"), ("cuda", "cpu"), ("cpu", "cuda")])
def test_a_checkpoint_goes_on_on_either_device(
    store: ReplayStore, tmp_path: Path, begun: str, goes_on: str
) -> None:
    one = learner(store, begun)
    one.learn(30)
    checkpoint.save(tmp_path / "saved", 30, one.state_dict())
    expected, _ = one.learn(10)
    other = learner(store, goes_on)
    saved = checkpoint.load(tmp_path / "saved")[1]
    other.load_state_dict(saved)
    for name, moments in saved["optimizer"]["state"].items():
        ours = other.optimizer.state_dict()["state"][name]
        assert ours["exp_avg"].device.type == goes_on
        assert torch.equal(ours["exp_avg_sq"].cpu(), moments["exp_avg_sq"])
    got, starts = other.learn(10)
    assert other.updates == 40 and starts.hidden.device.type == goes_on
    close = 1e-2 if begun == goes_on else 0.1
    assert got["loss"] == pytest.approx(expected["loss"], rel=close)
    one.close()
    other.close()


def test_a_stream_moves_to_a_gpu_and_back() -> None:
    state = torch.Generator().manual_seed(1).get_state()
    there = torch.Generator("cuda")
    restore_generator(there, state)
    drawn = torch.rand(3, generator=there, device="cuda")
    again = torch.Generator("cuda")
    restore_generator(again, state)
    assert torch.equal(torch.rand(3, generator=again, device="cuda"), drawn)
    here = torch.Generator()
    restore_generator(here, again.get_state())
    first = torch.rand(3, generator=here)
    restore_generator(here, again.get_state())
    assert torch.equal(torch.rand(3, generator=here), first)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("block", [1, 2])
def test_a_gpu_draws_the_same_frames_as_the_cpu(layers: int, block: int) -> None:
    made = decoder((1, 12, 10), layers=layers, block=block)
    features, noise = drawing(made)
    expected = one_by_one(made, features, noise)
    made, features, noise = made.cuda(), features.cuda(), noise.cuda()
    for draw in (one_by_one, sample_blocks):
        assert torch.equal(draw(made, features, noise).cpu(), expected), draw


@pytest.mark.timeout(300)
def test_a_whole_run_learns_on_a_gpu_and_goes_on_without_one(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    first = config(run_dir, device="cuda")
    train(first)
    lines_with_finite_losses(run_dir)
    result = json.loads((run_dir / "result.json").read_text())
    assert result["env_steps"] == 96 and len(result["eval"]["returns"]) == 3
    train(config(run_dir, device="cpu", env_steps=128))
    train(config(run_dir, device="cuda", env_steps=160))
    assert [line["env_steps"] for line in lines_with_finite_losses(run_dir)[-2:]] == [144, 160]


@pytest.mark.timeout(300)
def test_collectors_without_a_gpu_take_the_weights_of_a_learner_on_one(
    tmp_path: Path, ray_session: None
) -> None:
    run_dir = tmp_path / "run"
    collect = {"num_collectors": 1, "num_envs": 2, "steps_per_iteration": 16}
    train(config(run_dir, device="cuda", collect=collect))
    assert json.loads((run_dir / "result.json").read_text())["env_steps"] == 96


@pytest.mark.timeout(300)
def test_a_trial_says_which_gpu_it_was_trained_on_and_can_be_measured_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = make_trial(tmp_path, device="cuda", minutes=0.02)
    assert run_trial(trial)
    result = json.loads(trial.result_path.read_text())
    assert result["machine"]["card"] == torch.cuda.get_device_name()
    assert "--device cuda" in result["command"]
    trial.result_path.unlink()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert run_trial(trial)
    again = json.loads(trial.result_path.read_text())
    assert "card" not in again["machine"] and again["trained_here"] is False
    assert again["other_machines"][0]["card"] == torch.cuda.get_device_name()
    assert again["updates"] == result["updates"]
    assert again["command"] == result["command"]


def test_batches_reach_a_gpu_whole(store: ReplayStore) -> None:
    one = learner(store, "cpu")

    def drawn(device: str) -> list[SequenceBatch]:
        rng = np.random.default_rng(0)
        return list(feed(lambda: one.sampler.sample(4, 8, rng), 5, torch.device(device)))

    for sent, batch in zip(drawn("cuda"), drawn("cpu"), strict=True):
        for name in ("obs", "prev_action", "reward", "terminated", "is_first"):
            column = torch.as_tensor(getattr(sent, name))
            assert column.device.type == "cuda"
            assert torch.equal(column.cpu(), torch.as_tensor(getattr(batch, name)))
    one.close()


def test_more_updates_wait_for_the_gpu_once_each_at_most(store: ReplayStore) -> None:
    """The flat RNN asks how many pieces its sequences are cut into; nothing else may wait."""
    one = learner(store, "cuda")
    one.learn(3)

    def waits(updates: int) -> int:
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                one.learn(updates)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing" in str(warning.message) for warning in seen)

    assert waits(10) - waits(2) <= 8
    one.close()


def test_launches_of_updates_are_counted_on_a_gpu(store: ReplayStore) -> None:
    one = learner(store, "cuda")
    one.learn(3)
    assert 100 < count(lambda: one.learn(1), one.device) < count(lambda: one.learn(3), one.device)
    one.close()
