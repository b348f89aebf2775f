import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from simple_world import generator, make

from mbrl.episode import SequenceBatch
from mbrl.errors import ConfigError
from mbrl.streams import streams_of
from mbrl.world_model.flat import FlatWorldModel
from mbrl.world_model.latent import Latent
from mbrl.world_model.vectors.code import Moments, StreamCode, squash, unsquash
from mbrl.world_model.vectors.model import VectorWorldModel
from mbrl.world_model.vectors.prior import VectorPrior

LINE = spaces.Box(-np.inf, np.inf, (1,), np.float32)
MANY = spaces.Dict(
    {
        "wide": spaces.Box(-np.inf, np.inf, (2, 3), np.float64),
        "kind": spaces.Discrete(5, start=-2),
        "pair": spaces.Tuple((spaces.MultiBinary(3), spaces.Box(-3, 10, (2,), np.int16))),
    }
)
COLUMNS = ["obs.kind", "obs.pair.0", "obs.pair.1", "obs.wide"]  # gymnasium sorts a Dict's keys
IMAGE = spaces.Box(0, 255, (8, 8, 1), np.uint8)


def vectors(observation=LINE, action=None, **settings):
    """A small model of vectors."""
    sizes = {"hidden": 8, "width": 32, "members": 2, "components": 2, **settings}
    return make(observation, action or spaces.Discrete(2), vectors=sizes)


def batch_of(obs, action=None, reward=None, terminated=None, is_first=None):
    """Sequences (B, T), each the start of an episode unless said."""
    lead = next(iter(obs.values())).shape[:2] if isinstance(obs, dict) else obs.shape[:2]
    starts = np.zeros(lead, bool)
    starts[:, 0] = True
    return SequenceBatch(
        obs=obs,
        prev_action=np.zeros(lead, np.int64) if action is None else action,
        reward=np.zeros(lead, np.float32) if reward is None else reward,
        terminated=np.zeros(lead, bool) if terminated is None else terminated,
        is_first=starts if is_first is None else is_first,
    )


def many(batch=3, length=4, seed=0):
    """Random observations of `MANY` by column, (B, T, *shape) each."""
    rng = np.random.default_rng(seed)
    lead = batch, length
    return {
        "obs.kind": rng.integers(-2, 3, lead),
        "obs.pair.0": rng.integers(0, 2, (*lead, 3)).astype(np.int8),
        "obs.pair.1": rng.integers(-3, 11, (*lead, 2)).astype(np.int16),
        "obs.wide": rng.normal(size=(*lead, 2, 3)),
    }


def train(model, sample, updates, lr=5e-3):
    """Fit the model to batches from `sample(rng)`."""
    rng = np.random.default_rng(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    model.train()
    for update in range(updates):
        optimizer.param_groups[0]["lr"] = lr * (1 - update / updates)
        optimizer.zero_grad()
        model.loss(sample(rng))[0].backward()
        optimizer.step()
    return model.eval()


def seen(model, obs, action=None):
    """The latent after one first observation of N environments."""
    lead = len(obs)
    start, first = model.initial(lead, model.device), torch.ones(lead, dtype=torch.bool)
    action = torch.zeros(lead, dtype=torch.int64) if action is None else action
    return model.observe(start, action, torch.as_tensor(obs), first).latent


# -- observations and their code ----------------------------------------------------------------


def test_what_is_not_an_image_gets_the_vectors_layout():
    assert isinstance(make(LINE), VectorWorldModel)
    assert isinstance(make(spaces.Discrete(16)), VectorWorldModel)
    assert isinstance(make(IMAGE), FlatWorldModel)


@pytest.mark.parametrize("layout", ["auto", "vectors", "flat", "grid"])
def test_an_image_beside_other_streams_is_refused(layout):
    mixture = spaces.Dict({"camera": IMAGE, "speed": LINE})
    with pytest.raises(ConfigError, match="expected"):
        make(mixture, layout=layout)


def test_a_mixture_is_refused_with_the_way_out():
    with pytest.raises(
        ConfigError,
        match=r"obs.speed \(vector\); choose one with env.obs",
    ):
        make(spaces.Dict({"camera": IMAGE, "speed": LINE}))


def test_too_many_categories_are_refused():
    with pytest.raises(ConfigError, match="at most 16384 values"):
        make(spaces.MultiDiscrete([10_000, 10_000]))


def test_observations_come_back_as_they_were():
    model, obs = vectors(MANY), many()
    inputs = model.inputs(batch_of(obs))
    observed = model.observe(model.initial(3, model.device), *inputs).latent
    found = model.decode(observed)
    assert list(found) == COLUMNS
    for column, values in found.items():
        np.testing.assert_array_equal(values.numpy(), obs[column], strict=True)


def test_one_stream_is_a_plain_array_and_float64_keeps_its_digits():
    model = vectors(spaces.Box(-np.inf, np.inf, (2,), np.float64))
    obs = np.array([[1.7e9 + 0.25, 1e-300], [1.7e9 + 0.5, -1e300]])
    found = model.decode(seen(model, obs)).numpy()
    largest = float(np.finfo(np.float32).max)  # what is larger counts as this
    np.testing.assert_array_equal(found, [[1.7e9 + 0.25, 1e-300], [1.7e9 + 0.5, -largest]])


def test_integers_come_back_whole_and_within_their_bounds():
    space = spaces.Box(
        np.array([0, np.iinfo(np.int64).min]), np.iinfo(np.int64).max, dtype=np.int64
    )
    code = StreamCode(streams_of(space))
    found = code.unpack(torch.tensor([[2.6, 1e30], [-4.0, -1e30]], dtype=torch.float64))
    assert found.dtype == torch.int64
    assert found[:, 0].tolist() == [3, 0]
    assert found[0, 1] > 9.2e18 and found[1, 1] == np.iinfo(np.int64).min


def test_inputs_are_numbers_in_deviations_then_one_hot_categories():
    code = StreamCode(streams_of(spaces.Dict({"a": spaces.Discrete(3), "b": LINE})))
    code.learn(torch.tensor([[10.0, 0], [14.0, 1]]))  # mean 12, deviation 2
    inputs = code.inputs(torch.tensor([[13.0, 2], [math.nan, math.nan]]))
    assert inputs.tolist() == [[0.5, 0, 0, 1], [0, 0, 0, 0]]


@pytest.mark.parametrize("value", [0.0, 1e-30, -3.0, 4.0, 50.0, -1e30])
def test_squashing_keeps_small_numbers_and_can_be_undone(value):
    x = torch.tensor(value, dtype=torch.float64)
    torch.testing.assert_close(unsquash(squash(x)), x)
    assert abs(squash(x)) <= 75
    if abs(value) <= 4:
        assert squash(x) == x


def test_running_moments_are_those_of_all_rows():
    rng = np.random.default_rng(0)
    parts = [rng.normal(3, 2, (n, 2)) * [1, 1e20] for n in (5, 60, 1, 200)]
    moments = Moments(2)
    for part in parts:
        moments.update(torch.from_numpy(part))
    rows = np.concatenate(parts)
    np.testing.assert_allclose(moments.mean, rows.mean(0))
    np.testing.assert_allclose(moments.variance, rows.var(0))


def test_a_feature_that_is_constant_at_first_may_move_later():
    moments = Moments(2)
    for _ in range(50):
        moments.update(torch.tensor([[7.0, 0.0]]).expand(100, 2))
    assert moments.scale.tolist() == [7, 1]  # its size, or one
    moments.update(torch.tensor([[7.0, 0.0], [7.001, 3.0]]).expand(50, 2, 2).flatten(0, 1))
    assert 1e-5 < moments.scale[0] < 1e-3 and 0.1 < moments.scale[1] < 3


def test_rounding_is_no_movement():
    moments = Moments(1)
    moments.update(torch.tensor([[0.1], [0.1 + 1e-8]], dtype=torch.float64))
    torch.testing.assert_close(moments.scale, moments.mean)


# -- following ------------------------------------------------------------------------------------


def test_steps_and_sequences_lead_to_the_same_states():
    model, obs = vectors(MANY), many(batch=2, length=5)
    is_first = np.zeros((2, 5), bool)
    is_first[0, 0] = is_first[1, 3] = True  # the second begins within an episode
    batch = batch_of(obs, action=np.ones((2, 5), np.int64), is_first=is_first)
    action, rows, first = model.inputs(batch)
    whole = model.observe(model.initial(2, model.device), action, rows, first)
    latent = model.initial(2, model.device)
    for t in range(5):
        now = {column: values[:, t] for column, values in rows.items()}
        latent = model.observe(latent, action[:, t], now, first[:, t]).latent
        torch.testing.assert_close(latent.hidden, whole.latent.hidden[:, t])
        assert torch.equal(latent.code, whole.latent.code[:, t])
    assert torch.equal(latent.code, whole.latent.last.code)


def test_nothing_is_known_at_first_and_features_say_so():
    model = vectors(MANY, shows="both")
    features = model.features(model.initial(2, model.device))
    assert features.shape == (2, model.feature_size) and not features.any()


def test_a_row_without_a_past_teaches_nothing():
    model, obs = vectors(MANY).eval(), many(batch=1, length=3)
    is_first = np.array([[False, True, False]])
    _, before, _ = model.loss(batch_of(obs, is_first=is_first))
    reward = np.array([[50.0, 50.0, 0.0]], np.float32)
    ended = np.array([[True, True, False]])
    _, after, _ = model.loss(batch_of(obs, reward=reward, terminated=ended, is_first=is_first))
    assert after["reward"] == before["reward"] and after["continue"] == before["continue"]


# -- foreseeing -----------------------------------------------------------------------------------


@torch.no_grad()
def test_the_prior_is_a_distribution():
    model = vectors(members=3, components=3)
    prior = VectorPrior(4, 1, (3, 2), model.settings.vectors)
    torch.nn.init.normal_(prior.out.weight, std=0.7)
    grid = torch.linspace(-60, 60, 4001)
    context, total = torch.randn(4), 0.0
    for first in range(3):
        for second in range(2):
            category = torch.tensor([first, second]).expand(len(grid), 2)
            rows = context.expand(len(grid), 4)
            score = prior.score(rows, grid.unsqueeze(1), torch.full((1,), 2.0), category)
            total += float(torch.trapezoid((-score.nats).exp(), grid))
    assert total == pytest.approx(1, abs=1e-3)


def test_nats_of_streams_add_up_where_they_are_independent():
    model = vectors(MANY, members=1, components=1)
    _, metrics, _ = model.loss(batch_of(many()))
    streams = [float(value) for name, value in metrics.items() if name.startswith("nats/")]
    assert {name for name in metrics if name.startswith("nats/")} == {f"nats/{c}" for c in COLUMNS}
    assert sum(streams) == pytest.approx(float(metrics["kl"]), rel=1e-4)


def walk(rng):
    """x moves by -1 or 1, as the action says; x is paid on arriving at it, and 3 is the end."""
    action = rng.integers(0, 2, (16, 5))
    action[:, 0] = 0
    x = np.cumsum(2 * action - 1, 1) - (2 * action[:, :1] - 1) + rng.integers(-2, 3, (16, 1))
    first = np.zeros((16, 5), bool)
    first[:, 0] = True
    reward = np.where(first, 0, x).astype(np.float32)
    return batch_of(x[..., None].astype(np.float32), action, reward, (x == 3) & ~first, first)


def test_the_model_learns_what_an_action_leads_to_pays_and_ends():
    model = train(vectors(spaces.Box(-99, 99, (1,), np.float32)), walk, 250)
    x = np.array([[-1.0], [0.0], [2.0], [2.0]], np.float32)
    step = model.imagine_step(seen(model, x), torch.tensor([0, 1, 0, 1]), mode=True)
    arrived = model.decode(step.latent).flatten().tolist()
    assert arrived == pytest.approx([-2, 1, 1, 3], abs=0.1)
    assert step.reward.tolist() == pytest.approx([-2, 1, 1, 3], abs=0.7)
    assert (step.continue_prob < 0.5).tolist() == [False, False, False, True]
    drawn = model.imagine_step(seen(model, x), torch.tensor([0, 1, 0, 1]), generator())
    assert model.decode(drawn.latent).flatten().tolist() == pytest.approx([-2, 1, 1, 3], abs=0.3)


def fork(rng):
    """Both numbers and the category go one way, or, one time in four, the other."""
    way = (rng.random((32, 4)) < 0.25).astype(np.int64)
    number = np.where(way, 1.0, -1.0)[..., None] * [1.0, 100.0]
    return batch_of({"obs.number": number.astype(np.float32), "obs.way": way})


def test_two_outcomes_are_dreamt_as_often_as_they_happen_and_entries_agree():
    pair = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    space = spaces.Dict({"number": pair, "way": spaces.Discrete(2)})
    model = train(vectors(space), fork, 300)
    count = 4000
    start = {"obs.number": torch.tensor([[-1.0, -100.0]]).expand(count, 2)}
    start["obs.way"] = torch.zeros(count, dtype=torch.int64)
    first = torch.ones(count, dtype=torch.bool)
    latent = model.observe(model.initial(count, model.device), first.long(), start, first).latent
    drawn = model.decode(model.imagine_step(latent, first.long() * 0, generator()).latent)
    way, number = drawn["obs.way"], drawn["obs.number"]
    assert float(way.float().mean()) == pytest.approx(0.25, abs=0.06)
    sign = torch.where(way == 1, 1.0, -1.0)
    agree = ((number[:, 0] - sign).abs() < 0.3) & ((number[:, 1] - 100 * sign).abs() < 30)
    assert float(agree.float().mean()) > 0.97


def test_numbers_of_any_size_are_foreseen_and_nothing_breaks():
    """1e-30 and 1e30 beside one another, and one row that is far from all others."""

    def sample(rng):
        way = rng.integers(0, 2, (16, 6))
        obs = np.where(way[..., None], 1.0, -1.0) * np.array([1e-30, 1.0, 1e30])
        obs[0, 3] = 3e38 * rng.choice([-1, 1], 3)
        action = way.copy()
        action[:, 0] = 0
        return batch_of(obs.astype(np.float32), action)

    model = vectors(spaces.Box(-np.inf, np.inf, (3,), np.float32))
    train(model, sample, 20, lr=1e-3)
    loss, metrics, latent = model.loss(sample(np.random.default_rng(1)))
    assert all(bool(value.isfinite().all()) for value in (loss, *metrics.values()))
    assert all(bool(weight.isfinite().all()) for weight in model.parameters())
    now = latent.flatten()
    for _ in range(5):
        now = model.imagine_step(now, torch.ones(len(now.code)).long(), generator()).latent
    assert now.code.isfinite().all() and model.features(now).abs().max() < 100


def test_a_dream_of_one_and_of_no_category_has_its_shapes():
    for space in (spaces.Discrete(4), LINE):
        model = vectors(space, spaces.Box(-1, 1, (2,)), members=3)
        step = model.imagine_step(model.initial(1, model.device), torch.zeros(1, 2), generator())
        assert step.latent.code.shape == (1, 1) and step.reward.shape == (1,)
        assert model.decode(step.latent).shape == (1, *space.shape)


def test_a_dream_goes_on_the_same_from_what_a_checkpoint_holds():
    model = train(vectors(MANY), lambda rng: batch_of(many(seed=int(rng.integers(99)))), 3)
    torch.manual_seed(5)
    other = vectors(MANY).eval()
    other.load_state_dict(model.state_dict())
    action = torch.tensor([0, 1, 1])
    start = model.loss(batch_of(many()))[2].last
    ends = [one.imagine_step(start, action, generator()) for one in (model, other)]
    assert torch.equal(ends[0].latent.code, ends[1].latent.code)
    assert torch.equal(ends[0].reward, ends[1].reward)


def test_rates_are_the_prior_s_nats_and_those_of_a_static_one():
    model = vectors(MANY).eval()
    batch = batch_of(many())
    observed = model.observe(model.initial(3, model.device), *model.inputs(batch))
    dynamic, static = model.rates(observed)
    assert torch.equal(dynamic[:, 0], static[:, 0])  # of a first row nothing is known
    _, metrics, _ = model.loss(batch)
    torch.testing.assert_close(dynamic[:, 1:].mean(), metrics["kl"])
    torch.testing.assert_close(static.min() > math.log(5) + 3 * math.log(2), torch.tensor(True))


def test_frame_nats_are_zero_of_what_was_seen_and_grow_with_what_differs():
    model, obs = vectors(MANY), many(batch=1, length=2)
    action, rows, first = model.inputs(batch_of(obs))
    latent = model.observe(model.initial(1, model.device), action, rows, first).latent.flatten()
    flat = {column: values.flatten(0, 1) for column, values in rows.items()}
    assert model.frame_nats(flat, latent).tolist() == [0, 0]
    flat["obs.kind"] = (flat["obs.kind"] + 3) % 5 - 2
    torch.testing.assert_close(model.frame_nats(flat, latent), torch.full((2,), math.log(5)))


def test_latents_can_be_mixed_where_nothing_is_known():
    model = vectors()
    known, unknown = seen(model, np.ones((2, 1), np.float32)), model.initial(2, model.device)
    mixed = Latent.where(torch.tensor([True, False]), known, unknown)
    assert mixed.code.isnan().flatten().tolist() == [False, True]
