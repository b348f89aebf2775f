"""Random actions beside a policy: where they act, for how long, and what the policy knows of it."""

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from mbrl.acting import Explorers, RandomPolicy


class Steady:
    """Always does 7, and remembers what was done."""

    version = 3

    def __init__(self) -> None:
        self.took_last: Any = None

    def reset(self, num_envs: int) -> None:
        self.slots = num_envs

    def act(self, obs: Any, is_first: Any, explore: bool = True) -> Any:
        self.took(np.full(len(is_first), 7))
        return self.took_last

    def took(self, action: Any) -> None:
        self.took_last = action

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def explorers(share: float = 0.5) -> Explorers:
    policy: Any = Steady()
    return Explorers(policy, RandomPolicy(spaces.Discrete(5), 0), share)


def test_random_actions_act_only_while_a_step_of_theirs_earns_more() -> None:
    both = explorers()
    assert not both.exploring
    both.tell(np.array([1.0, 0.0, 0.0, 0.0]), steps=10, at_random=4)  # 1 in 40 steps
    assert not both.exploring  # the policy was not tried yet
    both.tell(np.zeros(4), steps=10, at_random=0)
    assert both.exploring
    assert (both.slots(4), both.slots(8)) == (2, 4)
    both.tell(np.array([0.0, 0.0, 1.0, 1.0]), steps=10, at_random=2)  # 1 in 60, and 2 in 56
    assert not both.exploring
    assert both.slots(4) == 0
    for _ in range(10):
        both.tell(np.zeros(4), steps=10, at_random=0)  # 0.9 ** 10 of those two are left
    assert both.earned["policy"][0] == pytest.approx(2 * 0.9**10)
    assert both.exploring


def test_equal_earnings_leave_the_policy_alone() -> None:
    both = explorers()
    both.tell(np.full(4, 10.0), steps=10, at_random=4)
    both.tell(np.full(4, 10.0), steps=10, at_random=0)
    assert not both.exploring


def test_the_first_slots_act_at_random_and_the_policy_is_told() -> None:
    both, first = explorers(), np.zeros(4, np.bool_)
    both.reset(4)
    assert both.act(None, first).tolist() == [7, 7, 7, 7]
    both.tell(np.ones(4), steps=1, at_random=4)
    both.tell(np.zeros(4), steps=1, at_random=0)
    drawn = np.array([both.act(None, first) for _ in range(50)])
    assert set(drawn[:, :2].flat) == {0, 1, 2, 3, 4}
    assert (drawn[:, 2:] == 7).all()
    steady: Any = both.policy
    assert steady.took_last.tolist() == drawn[-1].tolist()
    assert both.version == 3


def test_what_was_earned_is_saved() -> None:
    both, again = explorers(), explorers()
    both.tell(np.ones(4), steps=1, at_random=4)
    both.tell(np.zeros(4), steps=1, at_random=0)
    again.load_state_dict(both.state_dict())
    assert again.exploring
    both.tell(np.full(4, 9.0), steps=1, at_random=0)
    assert again.exploring  # the state is a copy
