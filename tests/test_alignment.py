"""From the environment to the loss and on into the dream, nothing is shifted by a step.

The counting environment spells its step number, the action that led there and the length of its
episode in every picture, pays the step number on arriving, and ends at its length. So every
expected value below is read off the very picture that travels beside it.
"""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tiny import model_settings

from envs import EnvSettings
from envs.counting import read_action, read_length, read_step
from mbrl.acting import LatentPolicy, RandomPolicy
from mbrl.collect import Collector
from mbrl.config.schema import CollectSettings, LearnModelSettings
from mbrl.evaluate import evaluate
from mbrl.imagine import DreamEnv, DreamVectorEnv
from mbrl.learn_model import WorldModelLearner
from mbrl.replay import ReplayStore, SequenceSampler
from mbrl.report.dream_video import newest_sequences
from mbrl.world_model.latent import ImaginedStep, Latent, Observed
from mbrl.world_model.layouts import make_world_model

OBS, ACTIONS = spaces.Box(0, 1, (8, 8, 1), np.uint8), spaces.Discrete(4)
CPU = torch.device("cpu")


def counting(**kwargs):
    return EnvSettings(id="reverie/Counting-v0", kwargs=kwargs)


def collected(directory, calls=4, steps=90, policy=None, **kwargs):
    """Interleaved episodes of three environments, cut into fragments of at most seven steps."""
    store = ReplayStore(directory)
    settings = CollectSettings(num_envs=3, fragment_steps=7)
    collector = Collector(counting(**kwargs), settings, store, root_seed=0)
    policy = policy or RandomPolicy(ACTIONS, 0)
    total = 0
    for _ in range(calls):
        total += collector.collect(steps, policy, total).steps
    collector.close()
    assert sum(info.steps for info in store.segments()) == total
    return store


def sampled(store, batch=64, length=9, capacity=10_000):
    with SequenceSampler(capacity, {"obs": ((8, 8, 1), np.dtype(np.uint8))}) as sampler:
        sampler.refresh(store)
        return sampler.sample(batch, length, np.random.default_rng(1))


def spelled(obs):
    """Step, action and length of pictures (..., 8, 8, 1), each (...,)."""
    flat = np.asarray(obs).reshape(-1, 8, 8, 1).astype(np.uint8)
    readers = (read_step, read_action, read_length)
    return [np.array([read(f) for f in flat]).reshape(obs.shape[:-3]) for read in readers]


def check(batch, truncate=False):
    """Every column follows from the picture of its own row."""
    step, action, length = spelled(batch.obs)
    goes_on = ~batch.is_first
    assert (batch.prev_action == np.where(goes_on, action, 0)).all()
    assert (batch.reward == np.where(goes_on, step, 0)).all()
    ends = goes_on & (step == length) & (not truncate)
    assert (batch.terminated == ends).all()
    joined = goes_on[:, 1:]
    assert (np.diff(step, axis=1)[joined] == 1).all()
    assert (np.diff(length, axis=1)[joined] == 0).all()
    return step, action, length


@pytest.mark.parametrize("truncate", [False, True])
def test_batches_follow_from_their_pictures(tmp_path, truncate):
    batch = sampled(collected(tmp_path, truncate=truncate), batch=256)
    step, action, length = check(batch, truncate)
    assert ((step == 0) == batch.is_first).all()  # all of every episode is in replay
    # the test would prove nothing if these did not occur
    assert (step == length).sum() > 20 and batch.is_first[:, 1:].sum() > 20
    assert set(action.flat) == {0, 1, 2, 3} and batch.terminated.any() == (not truncate)


@pytest.mark.parametrize("how", ["forgotten", "broken", "crashed"])
def test_rows_that_are_gone_leave_no_unmarked_gap(tmp_path, how):
    crashing = {"min_length": 5, "max_length": 20, "crash_at": 11}
    whole = {"min_length": 50, "max_length": 50}
    store = collected(tmp_path, **(crashing if how == "crashed" else whole))
    if how == "broken":
        middle = store.data / store.segments()[1].name
        middle.write_bytes(middle.read_bytes()[:1000])
    batch = sampled(store, batch=256, capacity=100 if how == "forgotten" else 10_000)
    assert store.quarantined == (how == "broken")
    step, _, _ = check(batch)
    assert batch.is_first[:, 1:].any()
    assert step.max() == 10 if how == "crashed" else (batch.is_first & (step > 0)).any()


# -- inside the loss ------------------------------------------------------------------------------


class Spy:
    """Keeps the arguments of the calls of one method and passes them on."""

    def __init__(self, owner, name, monkeypatch):
        self.calls, original = [], getattr(owner, name)

        def spy(*args, **named):
            kept = tuple(arg.clone() if isinstance(arg, torch.Tensor) else arg for arg in args)
            self.calls.append((kept, original(*args, **named)))
            return self.calls[-1][1]

        monkeypatch.setattr(owner, name, spy)

    @property
    def only(self):
        ((arguments, result),) = self.calls
        return arguments, result


def world_model(**changes):
    torch.manual_seed(0)
    return make_world_model(OBS, ACTIONS, model_settings(bf16=False, **changes)).eval()


def test_the_loss_gives_the_rnn_the_action_that_led_to_each_row(tmp_path, monkeypatch):
    batch, model = sampled(collected(tmp_path)), world_model()
    rnn = Spy(model.dynamics, "sequence", monkeypatch)
    frames = Spy(model.encoder, "forward", monkeypatch)
    model.loss(batch)
    (codes, action, is_first, _), _ = rnn.only
    (seen, *_), _ = frames.only
    step, led_here, _ = spelled(seen.frames.movedim(2, -1).numpy())
    assert (is_first.numpy() == (step == 0)).all()
    one_hot = np.eye(4)[led_here] * (step > 0)[..., None]
    assert (action.numpy() == one_hot).all()
    assert codes.shape[:2] == batch.shape


@pytest.mark.parametrize("truncate", [False, True])
def test_the_loss_gives_the_heads_what_arrived_with_each_row(tmp_path, monkeypatch, truncate):
    batch, model = sampled(collected(tmp_path, truncate=truncate)), world_model()
    plant_pictures(model, monkeypatch)
    with torch.no_grad():
        model.heads.out.bias[-1] = 20.0  # surely goes on: wrong by 20 nats where it does not
    heads = Spy(model.heads, "loss", monkeypatch)
    model.loss(batch)
    (features, reward, terminated), (_, continue_loss) = heads.only
    step, length = (features[..., model.code.size + i].numpy() for i in (0, 1))
    assert (reward.numpy() == step).all()  # zero on arriving at step zero, too
    end = (step == length) & (not truncate)
    assert (terminated.numpy() == end).all()
    assert (np.isclose(continue_loss.detach().numpy(), 20, atol=1e-3) == end).all()


def plant_pictures(model, monkeypatch):
    """The state of each row is replaced by what its picture spells."""

    def follow(latent, prev_action, seen, is_first, generator):
        pictures = seen.frames.movedim(2, -1).numpy()
        step, _, length = (torch.as_tensor(part).float() for part in spelled(pictures))
        hidden = torch.zeros(*is_first.shape, model.settings.hidden)
        hidden[..., 0], hidden[..., 1] = step, length
        flat = torch.zeros(*is_first.shape, model.code.raw_size)
        return Observed(Latent(hidden, torch.zeros(*is_first.shape, model.code.size)), flat)

    monkeypatch.setattr(model, "_follow", follow)


@pytest.mark.parametrize("fraction", [1.0, 0.3])
def test_the_decoder_gets_each_picture_with_its_own_state(tmp_path, monkeypatch, fraction):
    batch, model = sampled(collected(tmp_path)), world_model(decoder={"fraction": fraction})
    plant_pictures(model, monkeypatch)
    decoder = Spy(model.decoder, "nats", monkeypatch)
    model.loss(batch, torch.Generator().manual_seed(0))
    (image, features, _), _ = decoder.only
    step, _, length = spelled(image.movedim(1, -1).numpy())
    assert len(step) == round(fraction * batch.obs.shape[0] * batch.obs.shape[1])
    assert (features[:, model.code.size].numpy() == step).all()
    assert (features[:, model.code.size + 1].numpy() == length).all()


# -- from the loss into the dream -----------------------------------------------------------------


def real_starts(store, monkeypatch, updates=3):
    """Starts of dreams as the learner gives them, with (step, length) as their state."""
    learner = WorldModelLearner(
        observation_space=OBS,
        action_space=ACTIONS,
        model=model_settings(bf16=False),
        settings=LearnModelSettings(batch_size=32, sequence_length=9, max_starts=2000),
        store=store,
        capacity_steps=10_000,
        ring_directory=None,
        root_seed=0,
    )
    plant_pictures(learner.model, monkeypatch)
    learner.refresh()
    _, starts = learner.learn(updates)
    learner.close()
    return starts


class Oracle:
    """Imagines what the counting environment does, from the state that the learner handed over."""

    feature_size = model_settings().hidden + 24
    feature_map = None

    def features(self, latent):
        return latent.features

    def imagine_step(self, latent, action, generator=None):
        hidden = latent.hidden.clone()
        hidden[:, 0] += 1
        reward, goes_on = hidden[:, 0], (hidden[:, 0] < hidden[:, 1]).float()
        return ImaginedStep(Latent(hidden, latent.code), reward, goes_on)


def test_dreams_start_anywhere_but_in_terminal_states(tmp_path, monkeypatch):
    starts = real_starts(collected(tmp_path / "ends"), monkeypatch)
    step, length = starts.hidden[:, 0], starts.hidden[:, 1]
    assert (step < length).all() and (step == 0).any() and (step == length - 1).any()
    assert 700 < len(step) < 3 * 32 * 9
    # a truncated episode may be dreamed on
    starts = real_starts(collected(tmp_path / "cut", truncate=True), monkeypatch)
    assert len(starts.hidden) == 3 * 32 * 9
    assert (starts.hidden[:, 0] == starts.hidden[:, 1]).any()


def test_a_dream_pays_and_ends_on_the_step_that_arrives(tmp_path, monkeypatch):
    starts, n = real_starts(collected(tmp_path), monkeypatch), 64
    dream = DreamEnv(Oracle(), ACTIONS, starts, n, torch.Generator().manual_seed(0))
    code = dream.obs_dim - model_settings().hidden
    before = dream.reset()
    for _ in range(6):
        obs, reward, continue_prob, _ = dream.step(torch.zeros(n, dtype=torch.int64))
        assert (reward == before[:, code] + 1).all() and (reward == obs[:, code]).all()
        assert ((continue_prob == 0) == (obs[:, code] >= obs[:, code + 1])).all()
        before = obs
    assert (continue_prob == 0).any() and (continue_prob == 1).any()


def test_the_vector_face_of_a_dream_ends_on_the_same_step_and_restarts_on_the_next(
    tmp_path, monkeypatch
):
    starts, n = real_starts(collected(tmp_path), monkeypatch), 32
    dream = DreamEnv(Oracle(), ACTIONS, starts, n, torch.Generator().manual_seed(0))
    envs, code = DreamVectorEnv(dream, horizon=1000), dream.obs_dim - model_settings().hidden
    before, _ = envs.reset(seed=0)
    ended, restarts = np.zeros(n, bool), 0
    for _ in range(40):
        obs, reward, terminated, truncated, _ = envs.step(np.zeros(n, np.int64))
        step, length = obs[:, code], obs[:, code + 1]
        assert (reward[~ended] == before[~ended, code] + 1).all()
        assert (reward[ended] == 0).all() and not (terminated | truncated)[ended].any()
        assert (terminated[~ended] == (step == length)[~ended]).all()
        assert (step < length)[ended].all()  # a restart is a real state that goes on
        restarts += int(ended.sum())
        before, ended = obs, terminated | truncated
    assert restarts > 50


# -- acting ---------------------------------------------------------------------------------------


class ByStep:
    """A policy network that ignores its features and counts."""

    def __init__(self):
        self.calls = 0

    def act(self, features, *, explore, generator):
        self.calls += 1
        return (torch.arange(len(features)) + self.calls) % 4


@pytest.mark.parametrize("collecting", [True, False])
def test_acting_shows_observe_the_action_that_led_to_each_picture(
    tmp_path, monkeypatch, collecting
):
    model, network = world_model(), ByStep()
    observe = Spy(model, "observe", monkeypatch)
    policy = LatentPolicy(model, lambda: network, ACTIONS, 0, CPU)
    if collecting:
        store = collected(tmp_path, calls=2, policy=policy, max_length=20, crash_at=13)
        check(sampled(store))
    else:
        evaluate(policy, counting(), 5, 0, 2)
    assert len(observe.calls) > 10
    for (_, prev_action, obs, is_first, _), _ in observe.calls:
        step, action, _ = spelled(obs.numpy())
        assert (is_first.numpy() == (step == 0)).all()
        goes_on = step > 0
        assert (prev_action.numpy()[goes_on] == action[goes_on]).all()


def test_sequences_that_are_filmed_follow_from_their_pictures(tmp_path):
    batch = newest_sequences(collected(tmp_path), count=4, length=12)
    assert batch is not None and batch.shape == (4, 12)
    assert batch.is_first.tolist() == [[True] + [False] * 11] * 4
    check(batch)
