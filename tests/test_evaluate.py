import numpy as np
import pytest
from odd_envs import Endless, Picture, settings_of

from envs import EnvSettings
from envs.counting import CountingEnv, length_for, read_step
from mbrl.errors import CollectError, Stopped
from mbrl.evaluate import EvalResult, evaluate
from mbrl.seeding import seed


class Parity:
    """Deterministic: acts on the picture alone."""

    version = 0

    def __init__(self):
        self.widths, self.explored = [], set()

    def reset(self, num_envs):
        self.widths.append(num_envs)

    def act(self, obs, is_first, explore=True):
        self.explored.add(explore)
        assert is_first.tolist() == [read_step(frame) == 0 for frame in obs]
        return np.array([read_step(frame) % 4 for frame in obs])


class Still:
    """Does nothing, and remembers when the first slot's episode was at its first step."""

    version = 0

    def __init__(self):
        self.firsts = []

    def reset(self, num_envs):
        pass

    def act(self, obs, is_first, explore=True):
        self.firsts.append(bool(is_first[0]))
        return np.zeros(len(obs), int)


def counting(**kwargs):
    return EnvSettings(id="reverie/Counting-v0", kwargs=kwargs)


def lengths_of(root_seed, episodes, **bounds):
    return [length_for(seed(root_seed, "evaluate", i), **bounds) for i in range(episodes)]


@pytest.mark.parametrize("truncate", [False, True])
@pytest.mark.parametrize(("episodes", "num_envs"), [(1, 1), (1, 4), (7, 3), (10, 10), (3, 10)])
def test_exactly_the_wanted_episodes_each_from_its_own_seed(episodes, num_envs, truncate):
    result = evaluate(Parity(), counting(truncate=truncate), episodes, 5, num_envs)
    assert result.seeds == [seed(5, "evaluate", i) for i in range(episodes)]
    assert result.lengths == lengths_of(5, episodes)
    assert result.returns == [n * (n + 1) / 2 for n in result.lengths]


def test_long_episodes_are_not_crowded_out_by_short_ones():
    """With one very long episode among short ones, all slots wait for it."""
    bounds = {"min_length": 1, "max_length": 500}
    result = evaluate(Parity(), counting(**bounds), 12, 3, 4)
    assert result.lengths == lengths_of(3, 12, **bounds)
    assert max(result.lengths) > 5 * min(result.lengths)


def test_policy_is_reset_to_the_width_in_use_and_asked_to_explore_or_not():
    policy = Parity()
    evaluate(policy, counting(), 2, 0, 8, explore=False)
    assert policy.widths == [2] and policy.explored == {False}


@pytest.mark.parametrize(
    ("fault", "message"), [({"crash_at": 3}, "crashes at step 3"), ({"nan_at": 3}, "got nan")]
)
def test_an_evaluation_with_an_accident_is_not_one(fault, message):
    with pytest.raises(CollectError, match=message):
        evaluate(Parity(), counting(**fault), 3, 0, 2)


def test_mean_and_standard_deviation_by_hand():
    result = EvalResult([1.0, 3.0, 5.0], [2, 2, 2], [0, 1, 2])
    assert result.mean == 3.0 and result.std == pytest.approx((8 / 3) ** 0.5)
    assert result.as_dict()["episodes"] == 3


def test_an_episode_that_crashed_is_played_again_from_its_seed(monkeypatch):
    step, crashed = CountingEnv.step, []

    def crash_once(self, action):
        if not crashed and self._t == 2:
            crashed.append(True)
            raise RuntimeError("once")
        return step(self, action)

    monkeypatch.setattr(CountingEnv, "step", crash_once)
    result = evaluate(Parity(), counting(), 4, root_seed=3, num_envs=2)
    assert crashed
    assert result.lengths == lengths_of(3, 4)
    assert result.returns == [n * (n + 1) / 2 for n in result.lengths]


def test_an_episode_that_never_ends_is_cut_scored_and_counted():
    result = evaluate(Still(), settings_of(Endless), 3, 0, 2, max_episode_steps=7)
    assert (result.returns, result.lengths, result.cut) == ([7.0] * 3, [7] * 3, 3)
    assert result.as_dict()["cut"] == 3
    ended = evaluate(Still(), settings_of(Picture, length=7), 3, 0, 2, max_episode_steps=7)
    assert ended.lengths == [7] * 3 and ended.cut == 0


def test_after_a_cut_the_next_episode_begins_anew():
    """Of three episodes in one slot each is first once, at its first step."""
    policy = Still()
    evaluate(policy, settings_of(Endless), 3, 0, 1, max_episode_steps=2)
    assert policy.firsts == [True, False] * 3


def test_an_evaluation_looks_at_every_step_whether_to_stop():
    policy = Still()
    with pytest.raises(Stopped):
        evaluate(policy, settings_of(Endless), 3, 0, 2, stop=lambda: len(policy.firsts) >= 5)
    assert len(policy.firsts) == 5
