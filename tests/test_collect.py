"""What a Collector writes, read off the pictures of the counting environment."""

import numpy as np
import pytest

from envs import EnvSettings
from envs.counting import length_for, read_action, read_length, read_step
from mbrl.acting import RandomPolicy
from mbrl.collect import Collector, next_incarnation
from mbrl.config.schema import CollectSettings
from mbrl.errors import ConfigError
from mbrl.replay import ReplayStore, SequenceSampler
from mbrl.seeding import seed


class Scripted:
    """Acts by a fixed rhythm and remembers what it was shown."""

    def __init__(self, version=0):
        self.version, self.calls, self.resets = version, 0, []
        self.seen, self.firsts = [], []

    def reset(self, num_envs):
        self.resets.append(num_envs)

    def act(self, obs, is_first, explore=True):
        self.seen.append(obs.copy())
        self.firsts.append(is_first.copy())
        self.calls += 1
        return (self.calls + np.arange(len(obs))) % 3


def counting(**kwargs):
    return EnvSettings(id="reverie/Counting-v0", kwargs=kwargs)


@pytest.fixture
def store(tmp_path):
    return ReplayStore(tmp_path / "replay")


OPEN = []


@pytest.fixture(autouse=True)
def closed():
    yield
    while OPEN:
        OPEN.pop().close()


def collector(store, env=None, index=0, incarnation=0, root_seed=0, **settings):
    settings = CollectSettings(**{"num_envs": 3, "fragment_steps": 8, **settings})
    OPEN.append(Collector(env or counting(), settings, store, root_seed, index, incarnation))
    return OPEN[-1]


def check_rows(fragment):
    """Every value of a fragment follows from the step numbers in its pictures."""
    steps = [read_step(obs) for obs in fragment.obs]
    assert steps == list(range(fragment.t0, fragment.t0 + fragment.rows))
    with_action = fragment.rows - fragment.ended
    assert fragment.rewards[:with_action].tolist() == [step + 1 for step in steps[:with_action]]
    led_here = [read_action(obs) for obs in fragment.obs[1:]]
    assert fragment.actions[: fragment.rows - 1].tolist() == led_here
    ends = [step + 1 == read_length(fragment.obs[0]) for step in steps[:with_action]]
    ends += [False] * fragment.ended
    assert (fragment.terminateds | fragment.truncateds).tolist() == ends
    if fragment.ended:
        assert steps[-1] == read_length(fragment.obs[0])
        assert fragment.actions[-1] == 0 and fragment.rewards[-1] == 0


def test_steps_are_exact_and_committed_as_one_segment_of_what_the_environment_did(store):
    one, policy = collector(store, counting(life_loss_every=3)), Scripted(version=7)
    receipt = one.collect(90, policy, 100)
    assert receipt.steps == 90 and receipt.env_restarts == 0
    (info,) = store.segments()
    assert (info.steps, info.env_steps_total, info.writer) == (90, 190, "c0")
    fragments = list(store.fragments())
    for fragment in fragments:
        check_rows(fragment)
        assert (fragment.policy_version, fragment.env_steps_total) == (7, 190)
        assert not fragment.truncateds.any()
        arrived = [read_step(obs) + 1 for obs in fragment.obs[: fragment.steps]]
        assert fragment.life_loss[: fragment.steps].tolist() == [step % 3 == 0 for step in arrived]
    lengths = [read_length(fragment.obs[0]) for fragment in fragments if fragment.ended]
    assert sorted(receipt.returns) == sorted(n * (n + 1) / 2 for n in lengths)  # 1 + 2 + ... + n
    assert len(receipt.returns) >= 3
    # and the policy saw which observations are the first of an episode
    assert policy.resets == [3]
    for obs, firsts in zip(policy.seen, policy.firsts, strict=True):
        assert firsts.tolist() == [read_step(frame) == 0 for frame in obs]


def test_fragments_are_cut_after_their_steps_at_ends_and_when_the_call_returns(store):
    one = collector(store, counting(min_length=10, max_length=10), num_envs=1, fragment_steps=4)
    one.collect(6, Scripted(), 0)
    one.collect(16, Scripted(), 6)
    fragments = list(store.fragments())
    # two episodes of 10 steps and the final observation, then 2 steps of a third
    cuts = [(f.t0, f.rows, f.ended) for f in fragments]
    assert cuts[:3] == [(0, 4, False), (4, 2, False), (6, 5, True)]
    assert cuts[3:] == [(0, 4, False), (4, 4, False), (8, 3, True), (0, 2, False)]
    assert len({f.eps_id for f in fragments}) == 3


def test_another_policy_is_reset_and_takes_over_in_the_middle_of_an_episode(store):
    one, first, second = collector(store), Scripted(), Scripted()
    one.collect(3, first, 0)
    one.collect(3, first, 3)
    one.collect(6, second, 6)
    assert first.resets == [3] and second.resets == [3]
    assert [firsts.tolist() for firsts in first.firsts] == [[True] * 3, [False] * 3]
    assert [read_step(obs) for obs in second.seen[0]] == [2, 2, 2]
    assert all(f.t0 in (0, 1, 2) for f in store.fragments())  # the data knows of no new start


# -- accidents ------------------------------------------------------------------------------------


def test_a_crashed_environment_is_counted_and_nothing_else_is_lost(store):
    one, policy = collector(store, counting(min_length=20, max_length=20, crash_at=7)), Scripted()
    steps = restarts = 0
    for _ in range(5):
        receipt = one.collect(12, policy, steps)
        # what was lost is made up for, in whole steps of the vector
        assert 12 <= receipt.steps < 15 and not receipt.returns
        steps, restarts = steps + receipt.steps, restarts + receipt.env_restarts
    rows = {}
    for f in store.fragments():
        assert f.t0 == rows.get(f.eps_id, 0)
        check_rows(f)  # nothing is missing inside a fragment
        rows[f.eps_id] = f.t0 + f.rows
    # the crashed step did not happen: episodes break off after the step before it
    assert restarts > 0 and max(rows.values()) == 6 and sum(rows.values()) == steps
    for obs, firsts in zip(policy.seen, policy.firsts, strict=True):
        assert firsts.tolist() == [read_step(frame) == 0 for frame in obs]


# -- seeds, stops and restarts --------------------------------------------------------------------


def test_episode_seeds_depend_on_everything_that_tells_episodes_apart(store):
    lengths = set()
    for args in ({}, {"index": 1}, {"incarnation": 1}, {"root_seed": 1}):
        one = collector(store, counting(min_length=1, max_length=60_000), num_envs=2, **args)
        lengths |= {read_length(obs) for obs in one.vector.obs}
    assert len(lengths) == 8
    assert length_for(seed(0, "collect", 0, 0, 0, 0), 1, 60_000) in lengths


def test_incarnations_have_names_of_their_own_even_after_the_first_was_evicted(store):
    for expected, writer in ((0, "c0"), (1, "c0r1"), (2, "c0r2")):
        assert next_incarnation(store, 0) == expected
        collector(store, incarnation=expected).collect(6, Scripted(), 6 * expected)
        assert store.segments()[-1].writer == writer
    assert next_incarnation(store, 1) == 0 and next_incarnation(store, 10) == 0
    (store.data / store.segments()[0].name).unlink()
    assert next_incarnation(store, 0) == 3


@pytest.mark.parametrize("env", [counting(), EnvSettings(id="MinAtar/Breakout-v1")])
def test_a_restored_collector_goes_on_exactly(tmp_path, env):
    straight, stopped = (ReplayStore(tmp_path / name) for name in ("straight", "stopped"))

    def policy_at(calls):
        policy = Scripted()
        policy.calls = calls
        return policy

    one = collector(straight, env)
    one.collect(30, policy_at(0), 0)
    one.collect(45, policy_at(10), 30)
    two = collector(stopped, env)
    two.collect(30, policy_at(0), 0)
    state = two.state_dict()
    three = collector(stopped, env, incarnation=1)
    three.load_state_dict(state)
    receipt = three.collect(45, policy_at(10), 30)
    # their names hold the hashes of their rows
    assert stopped.segments() == straight.segments() and receipt.unrepeatable == 0


def test_an_environment_that_does_not_repeat_itself_is_counted_and_starts_anew(store):
    one, policy = collector(store, counting(min_length=50, max_length=50)), Scripted()
    one.collect(30, policy, 0)
    state = one.state_dict()
    state["obs"][1] = 1 - state["obs"][1]
    one.load_state_dict(state)
    receipt = one.collect(30, policy, 30)
    assert receipt.unrepeatable == 1
    assert [read_step(obs) for obs in policy.seen[10]] == [10, 0, 10]
    assert policy.firsts[10].tolist() == [False, True, False]
    for f in store.fragments():
        check_rows(f)


def batch_of(directory, env=None, **settings):
    """What is sampled of two calls, and how many fragments they made."""
    store = ReplayStore(directory)
    one = collector(store, env, **settings)
    one.collect(60, Scripted(), 0)
    one.collect(30, Scripted(), 60)
    with SequenceSampler(1000, {"obs": ((8, 8, 1), np.dtype(np.uint8))}) as sampler:
        sampler.refresh(store)
        return sampler.sample(32, 6, np.random.default_rng(0)), len(list(store.fragments()))


def test_what_is_sampled_depends_neither_on_the_clock_that_cut_it_nor_on_kept_memory(tmp_path):
    expected, few = batch_of(tmp_path / "fast")
    slow, many = batch_of(tmp_path / "slow", fragment_s=1e-9)
    ram, _ = batch_of(tmp_path / "ram", EnvSettings(id="reverie/Counting-v0", ram=True))
    assert many > few
    for batch in (slow, ram):
        for name, values in vars(expected).items():
            assert np.array_equal(getattr(batch, name), values), name


def test_time_between_calls_does_not_cut_fragments(store, monkeypatch):
    import time

    one = collector(store, counting(min_length=50, max_length=50), fragment_s=5.0)
    policy, ahead = Scripted(), time.monotonic() + 1000.0
    one.collect(12, policy, 0)
    monkeypatch.setattr(time, "monotonic", lambda: ahead)
    one.collect(12, policy, 12)
    assert [f.rows for f in store.fragments()] == [4] * 6


def test_random_policy_is_uniform_and_repeats_with_its_seed():
    from gymnasium import spaces

    first = np.ones(4000, bool)
    actions = [RandomPolicy(spaces.Discrete(4), 0).act(np.zeros((4000, 1)), first) for _ in (0, 1)]
    assert np.array_equal(*actions)
    assert np.abs(np.bincount(actions[0], minlength=4) / 4000 - 0.25).max() < 0.03
    bounds = np.array([[-1, 0], [0, 5]], np.float32)
    box = RandomPolicy(spaces.Box(*bounds), 0)
    drawn = box.act(np.zeros((500, 1)), first[:500])
    assert drawn.dtype == np.float32 and drawn.shape == (500, 2)
    assert (drawn[:, 0] <= 0).all() and drawn[:, 1].max() > 4
    with pytest.raises(ConfigError, match="got Text at actions"):
        RandomPolicy(spaces.Text(2), 0)


def test_random_actions_are_held_as_long_as_the_zeta_distribution_says():
    """Of exponent 2: one step with probability 6 / pi ** 2, two with a quarter of it."""
    from gymnasium import spaces

    policy, slots = RandomPolicy(spaces.Discrete(10**6), 0, repeat=2.0), 2000
    policy.reset(slots)
    first, going_on = np.ones(slots, bool), np.zeros(slots, bool)
    seen = np.zeros((slots, 1))
    steps = np.stack([policy.act(seen, first), *(policy.act(seen, going_on) for _ in range(2))])
    one = 6 / np.pi**2
    same = steps[1:] == steps[:-1]
    assert abs((~same[0]).mean() - one) < 0.04
    assert abs((same[0] & ~same[1]).mean() - one / 4) < 0.03
    state, next_steps = policy.state_dict(), policy.act(seen, going_on)
    resumed = RandomPolicy(spaces.Discrete(10**6), 1, repeat=2.0)
    resumed.load_state_dict(state)
    assert np.array_equal(resumed.act(seen, going_on), next_steps)
    assert (policy.act(seen, first) != next_steps).all()  # nothing is held beyond an episode


def test_actions_with_parts_are_held_whole_and_resume():
    from gymnasium import spaces

    space = spaces.Dict(gear=spaces.Discrete(10**6, start=1), pull=spaces.Box(-1, 1, (2,)))
    policy, slots = RandomPolicy(space, 0, repeat=2.0), 2000
    first, going_on = np.ones(slots, bool), np.zeros(slots, bool)
    before, after = policy.act({}, first), policy.act({}, going_on)
    same = before["gear"] == after["gear"]
    assert abs(same.mean() - (1 - 6 / np.pi**2)) < 0.04
    assert np.array_equal((before["pull"] == after["pull"]).all(1), same)
    resumed = RandomPolicy(space, 1, repeat=2.0)
    resumed.load_state_dict(policy.state_dict())
    assert np.array_equal(resumed.act({}, going_on), policy.act({}, going_on))
    fresh = RandomPolicy(space, 1, repeat=2.0)
    fresh.load_state_dict(RandomPolicy(space, 0, repeat=2.0).state_dict())
    assert len(fresh.act({}, first)) == slots


def test_memory_is_stored_with_the_row_that_shows_it(store):
    one = collector(store, EnvSettings(id="reverie/Counting-v0", ram=True))
    one.collect(60, Scripted(), 0)
    one.collect(60, Scripted(), 60)
    fragments = list(store.fragments())
    assert any(f.ended for f in fragments) and any(f.t0 > 0 for f in fragments)
    for f in fragments:
        assert f.ram.tolist() == [[0, read_step(obs), read_action(obs)] for obs in f.obs]
    assert store.layout().ram_bytes == 3
