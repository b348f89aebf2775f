from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from odd_envs import (
    ResetFailsTwice,
    ResetNeedsOptions,
    ResetOfOldGym,
    StepAlwaysFails,
    settings_of,
)
from stream_envs import Scripted

from envs import EnvError, EnvSettings, VectorEnv
from envs.counting import read_action, read_length, read_step

COUNTING = "reverie/Counting-v0"


class Liar(gym.Env):
    """Promises (4,) float32 and breaks one promise; its infos are the memories given, in order."""

    observation_space = gym.spaces.Box(-1, 1, (4,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, lie: str, memories: Sequence[Any] = ()) -> None:
        self.lie = lie
        self.infos = iter(memories)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        size = 3 if self.lie == "reset" else 4
        return np.zeros(size, np.float32), next(self.infos, {})

    def step(self, action: Any) -> Any:
        obs: Any = np.zeros(4, np.float32)
        match self.lie:
            case "shape":
                obs = np.zeros(5, np.float32)
            case "dtype":
                obs = np.zeros(4, np.float64)
            case "result":
                return obs, 0.0, False, {}
            case "reward":
                return obs, np.ones(2), False, False, {}
            case "huge" | "nan":
                return obs, {"huge": 1e39, "nan": np.nan}[self.lie], False, False, {}
            case "mutate":
                action[:] = 9
        return obs, float(action[0]), False, False, next(self.infos, {})


def counting(
    num_envs: int = 3, *, max_restarts: int = 10, ram: bool = False, **kwargs: Any
) -> VectorEnv:
    settings = EnvSettings(id=COUNTING, ram=ram, kwargs=kwargs)
    vector = VectorEnv(settings, num_envs, max_restarts=max_restarts)
    for index in range(num_envs):
        if kwargs.get("crash_at") != 0:
            vector.reset(index, seed=index)
    return vector


def lying(lie: str) -> VectorEnv:
    vector = VectorEnv(EnvSettings(factory=f"{__name__}.Liar", kwargs={"lie": lie}), 1)
    vector.reset(0, seed=5)
    return vector


def test_every_slot_has_its_own_seed_and_action() -> None:
    vector = counting(3)
    assert vector.num_envs == 3 and vector.single_action_space.n == 4
    assert vector.single_observation_space.shape == (8, 8, 1)
    assert [read_length(obs) for obs in vector.obs] == [5, 6, 7]
    step = vector.step(np.array([2, 0, 3]))
    assert [read_action(obs) for obs in step.obs] == [2, 0, 3]
    assert [read_step(obs) for obs in step.obs] == [1, 1, 1]
    assert step.rewards.tolist() == [1.0, 1.0, 1.0] and step.rewards.dtype == np.float32
    for flags in (step.terminateds, step.truncateds, step.life_loss, step.crashed):
        assert flags.dtype == bool and not flags.any() and flags.shape == (3,)


def test_an_ended_slot_shows_its_final_observation_and_must_be_reset() -> None:
    vector = counting(2)
    for _ in range(4):
        vector.step(np.zeros(2, int))
    step = vector.step(np.zeros(2, int))
    assert step.terminateds.tolist() == [True, False]
    assert [read_step(obs) for obs in step.obs] == [5, 5]
    with pytest.raises(EnvError, match=r"reset\(index, seed\) before step\(\) for slots \[0\]"):
        vector.step(np.zeros(2, int))
    vector.reset(0, seed=3)
    assert [read_step(obs) for obs in vector.obs] == [0, 5]
    assert [read_step(obs) for obs in step.obs] == [5, 5]  # what was given stays as it was
    assert [read_step(obs) for obs in vector.step(np.zeros(2, int)).obs] == [1, 6]


def test_truncation_and_life_loss_differ_from_termination() -> None:
    vector = counting(1, truncate=True, life_loss_every=5)
    for _ in range(5):
        step = vector.step(np.zeros(1, int))
    assert (step.terminateds[0], step.truncateds[0], step.life_loss[0]) == (False, True, True)


def test_replaying_the_recorded_actions_finds_an_open_episode_again() -> None:
    vector = counting(2)
    kept = vector.obs
    assert vector.replay(1, np.array([3, 2])) is True
    assert (read_step(vector.obs[1]), read_action(vector.obs[1])) == (2, 2)
    assert read_step(vector.obs[0]) == 0 and read_step(kept[1]) == 0
    assert vector.replay(0, []) is True
    assert [read_step(obs) for obs in vector.step(np.zeros(2, int)).obs] == [1, 3]


def test_replaying_past_an_end_or_a_crash_is_reported() -> None:
    vector = counting(2, crash_at=6)
    assert vector.replay(0, [0] * 5) is False  # seed 0 ends at 5
    assert vector.replay(1, [0] * 6) is False
    assert vector.restarts == 1
    with pytest.raises(EnvError, match=r"for slots \[0, 1\]"):
        vector.replay(0, [0])


def test_a_crashed_env_is_made_anew_and_the_others_go_on() -> None:
    vector = counting(3, crash_at=6)
    for _ in range(5):
        step = vector.step(np.ones(3, int))
    vector.reset(0, seed=0)  # its episode ended at step 5
    step = vector.step(np.ones(3, int))
    assert step.crashed.tolist() == [False, True, True]
    assert vector.restarts == 2
    assert step.rewards.tolist() == [1.0, 0.0, 0.0]
    assert not step.terminateds.any() and not step.truncateds.any()
    assert [read_step(obs) for obs in step.obs] == [1, 5, 5]  # the last good observation
    vector.reset(1, seed=4)
    vector.reset(2, seed=4)
    assert [read_step(obs) for obs in vector.step(np.ones(3, int)).obs] == [2, 1, 1]


def test_crashes_in_a_row_stop_the_run_and_keep_the_cause() -> None:
    vector = counting(1, crash_at=2, max_restarts=3)
    with pytest.raises(EnvError, match=r"environment 0 .*seed 9, step 1.* after 3 restarts") as got:
        for _ in range(10):
            vector.reset(0, seed=9)
            vector.step(np.zeros(1, int))
            vector.step(np.zeros(1, int))
    assert isinstance(got.value.__cause__, RuntimeError)
    assert vector.restarts == 4


def test_an_episode_that_ends_forgives_the_crashes_before_it() -> None:
    vector = counting(1, crash_at=6, max_restarts=1)
    for _ in range(4):
        for seed in (1, 0):  # seed 1 lasts 6 steps and crashes, seed 0 lasts 5 and ends
            vector.reset(0, seed=seed)
            for _ in range(6 - (seed == 0)):
                vector.step(np.zeros(1, int))
    assert vector.restarts == 4


def test_crashes_in_reset_are_retried_and_then_stop_the_run() -> None:
    vector = counting(1, crash_at=0, max_restarts=2)
    with pytest.raises(EnvError, match="crashes in reset"):
        vector.reset(0, seed=0)
    assert vector.restarts == 3


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        ("shape", r"expected observations of shape \(4,\) and dtype float32.*got \(5,\)"),
        ("dtype", "got .* float64"),
        ("result", r"expected \(obs, number, bool, bool, dict\) from step\(\)"),
        ("reward", r"expected \(obs, number, bool, bool, dict\) from step\(\)"),
        ("huge", "expected a finite float32 reward, got 1e"),
        ("nan", r"environment 0 .*seed 5, step 0.*finite float32 reward, got nan"),
        ("reset", r"got \(3,\)"),
    ],
)
def test_a_broken_promise_stops_the_run(lie: str, message: str) -> None:
    with pytest.raises(EnvError, match=message):
        lying(lie).step(np.zeros((1, 2)))


def test_continuous_actions_are_copied_rows() -> None:
    actions = np.array([[0.5, -0.5]])
    assert lying("").step(actions).rewards.tolist() == [0.5]
    lying("mutate").step(actions)
    assert lying("mutate").replay(0, actions) is True
    assert actions.tolist() == [[0.5, -0.5]]
    with pytest.raises(ValueError, match=r"actions: expected shape \(1, 2\), got \(2,\)"):
        lying("").step(np.zeros(2))


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ([0, 0], r"expected \(3,\) integers, got shape \(2,\)"),
        ([0.0, 1.0, 0.0], "integers"),
        ([0, 4, 0], "expected 0 to 3, got"),
        ([0, -1, 0], "expected 0 to 3, got"),
    ],
)
def test_wrong_discrete_actions_are_refused(actions: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        counting(3).step(np.array(actions))


def test_observations_of_any_kind_have_a_column_each() -> None:
    taxi, blackjack = (VectorEnv(EnvSettings(id=one), 2) for one in ("Taxi-v3", "Blackjack-v1"))
    assert taxi.obs.tolist() == [0, 0] and taxi.obs.dtype == np.int64
    taxi.reset(1, seed=3)
    blackjack.reset(0, seed=1)
    blackjack.reset(1, seed=2)
    cards = [gym.make("Blackjack-v1").reset(seed=seed)[0] for seed in (1, 2)]
    assert list(blackjack.obs) == ["obs.0", "obs.1", "obs.2"]
    for column, expected in zip(blackjack.obs.values(), zip(*cards, strict=True), strict=True):
        assert column.tolist() == list(map(int, expected))
    before = blackjack.obs
    step = blackjack.step(np.zeros(2, int))
    assert step.obs is blackjack.obs and before["obs.0"].tolist() == [card[0] for card in cards]


def scripted(monkeypatch: pytest.MonkeyPatch, space: gym.Space, *shown: Any) -> VectorEnv:
    """One environment that has shown the first of these observations."""
    monkeypatch.setattr("envs.vector.make_env", lambda settings: Scripted(space, list(shown)))
    vector = VectorEnv(EnvSettings(id=COUNTING), 1)
    vector.reset(0, seed=5)
    return vector


STILL = np.zeros(1, int)
PAIR = gym.spaces.Dict(a=gym.spaces.Box(-1, 1, (2,)), b=gym.spaces.Discrete(3, start=-1))
FLAT = np.zeros(2, np.float32)


@pytest.mark.parametrize(
    ("space", "first", "second", "message"),
    [
        (gym.spaces.Discrete(3), 1, 3, r"seed 5, step 0\): expected obs within Discrete.3., got 3"),
        (gym.spaces.Discrete(3), 1, -1, "got -1; mend the environment, or widen"),
        (gym.spaces.Discrete(3), 1, 1.0, "dtype int64 for obs, as its space says, got .* float64"),
        (gym.spaces.MultiBinary(2), [0, 1], [0, 2], r"within MultiBinary.*, got 2 at \[1\]"),
        (gym.spaces.MultiBinary(2), [0, 1], [0, 256], r"dtype int8 for obs, .*got \[0, 256\]"),
        (gym.spaces.MultiDiscrete([2, 3]), [1, 2], [2, 2], r"got 2 at \[0\]"),
        (
            gym.spaces.Box(0, 1, (2, 2), np.uint8),
            *(np.full((2, 2), n, "u1") for n in (1, 2)),
            "2 at",
        ),
        (
            gym.spaces.Box(-np.inf, np.inf, (2,)),
            FLAT,
            np.float32([0, np.inf]),
            r"inf at \[1\]; mend",
        ),
        (gym.spaces.Box(-1, 1, (2,)), FLAT, np.float32([np.nan, 0]), "got nan at .*replace such"),
        (PAIR, {"a": FLAT, "b": -1}, {"a": FLAT, "b": 2}, r"expected obs\.b within .*, got 2"),
        (
            PAIR,
            {"a": FLAT, "b": -1},
            {"a": FLAT},
            r"a dict with the keys \['a', 'b'\], got \['a'\]",
        ),
        (PAIR, {"a": FLAT, "b": -1}, FLAT, "with the keys .*, got ndarray"),
        (
            PAIR,
            {"a": FLAT, "b": -1},
            {"a": FLAT[:1], "b": 0},
            r"shape \(2,\) .* for obs\.a, .*\(1,\)",
        ),
        (gym.spaces.Tuple([gym.spaces.Discrete(2)]), (1,), (1, 1), "a tuple of 1 parts, got 2"),
    ],
)
def test_an_observation_outside_its_space_is_one_sentence(
    space: gym.Space, first: Any, second: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EnvError, match=f"^environment 0 .*{message}"):
        scripted(monkeypatch, space, first, second).step(STILL)
    with pytest.raises(EnvError, match=f"^environment 0 .*{message}"):
        scripted(monkeypatch, space, second)


def test_measurements_outside_their_bounds_are_kept_and_told_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    space = gym.spaces.Box(np.float32([-1, -9]), np.float32([1, 9]))
    shown = [FLAT, np.float32([0.5, 9.5]), np.float32([2, 0]), np.float32([np.nan, 0])]
    vector = scripted(monkeypatch, space, *shown)
    assert vector.step(STILL).obs.tolist() == [[0.5, 9.5]]
    assert vector.step(STILL).obs.tolist() == [[2, 0]]
    assert caplog.text.count("it is stored as it is, and this is said once") == 1
    assert "seed 5, step 0): expected obs within Box" in caplog.text and "got 9.5" in caplog.text
    with pytest.raises(EnvError, match="got nan"):
        vector.step(STILL)


@pytest.mark.parametrize(
    ("space", "shown", "kept"),
    [
        (gym.spaces.Discrete(2), True, 1),
        (gym.spaces.Discrete(3), np.uint8(2), 2),
        (gym.spaces.Box(0, 9, (), np.float32), 2.5, 2.5),
        (gym.spaces.Box(0, 9, (), np.int32), np.int32(4), 4),
        (gym.spaces.Box(0, 9, (2,), np.uint8), [1, 2], [1, 2]),
        (gym.spaces.MultiBinary(2), np.array([True, False]), [1, 0]),
    ],
)
def test_numbers_without_a_type_of_their_own_take_the_promised_one(
    space: gym.Space, shown: Any, kept: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    obs = scripted(monkeypatch, space, shown).obs
    assert obs[0].tolist() == kept and obs.dtype == space.dtype


def test_texts_are_refused_until_they_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    mission = gym.spaces.Dict(seen=gym.spaces.Discrete(2), mission=gym.spaces.Text(9))
    with pytest.raises(EnvError, match=r"Counting.*Text at obs\.mission; drop it with env.observe"):
        scripted(monkeypatch, mission, {"seen": 1, "mission": "go"})


def test_memory_is_in_line_with_the_observations() -> None:
    assert counting().ram is None
    vector = counting(2, ram=True)
    assert vector.ram.tolist() == [[0, 0, 0], [0, 0, 0]]
    vector.step(np.array([1, 3]))
    before = vector.ram
    vector.step(np.array([2, 0]))
    assert vector.ram.tolist() == [[0, 2, 2], [0, 2, 0]]
    vector.reset(1, seed=5)
    assert vector.ram.tolist() == [[0, 2, 2], [0, 0, 0]]
    assert before.tolist() == [[0, 1, 1], [0, 1, 3]]  # what was given out stays


def test_memory_survives_a_crash_and_a_replay() -> None:
    vector = counting(1, ram=True, crash_at=3)
    assert vector.replay(0, np.array([1, 2]))
    assert vector.step(np.array([1])).crashed[0]
    assert vector.ram.tolist() == [[0, 2, 2]]  # the step did not happen


@pytest.mark.parametrize(
    ("memories", "message"),
    [
        ([{}], r"\(R,\) uint8, as env.ram asks for, got NoneType"),
        ([{"ram": [1, 2]}], "got list"),
        ([{"ram": np.zeros(4)}], "got ndarray"),
        ([{"ram": np.zeros(4, np.uint8)}, {"ram": np.zeros(5, np.uint8)}], r"\(4,\).*got ndarray"),
    ],
)
def test_memory_of_another_kind_is_refused(
    memories: list[Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("envs.vector.make_env", lambda settings: Liar("", memories))
    vector = VectorEnv(EnvSettings(id=COUNTING, ram=True), 1)
    with pytest.raises(EnvError, match=message):
        vector.reset(0, seed=1)
        vector.step(np.zeros((1, 2)))


def played(settings: EnvSettings, steps: int = 20) -> VectorEnv:
    """One slot after some steps, reset after each crash as a collector does."""
    vector = VectorEnv(settings, 1, max_restarts=100)
    vector.reset(0, seed=0)
    for _ in range(steps):
        step = vector.step(np.zeros(1, int))
        if (step.crashed | step.terminateds)[0]:
            vector.reset(0, seed=0)
    return vector


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (ResetNeedsOptions, r"failed in their first reset\(\), always with ValueError: choose a"),
        (StepAlwaysFails, r"failed in their first step\(\), always with ValueError: no such joint"),
        (ResetOfOldGym, r"expected \(obs, dict\) from reset\(\), got array"),
    ],
)
def test_what_fails_the_same_way_from_the_start_is_not_tried_again_and_again(
    factory: Any, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(EnvError, match=message):
        played(settings_of(factory))
    assert len(caplog.records) <= 2


def test_a_reset_that_fails_at_first_is_tried_again() -> None:
    ResetFailsTwice.failures = 2
    assert played(settings_of(ResetFailsTwice)).restarts == 2


def test_first_steps_that_fail_now_and_then_are_bad_luck() -> None:
    vector = counting(1, max_restarts=100)
    for _ in range(5):
        vector._envs[0].step = None  # type: ignore[assignment, method-assign]
        assert vector.step(np.zeros(1, int)).crashed[0]
        vector.reset(0, seed=0)
        assert not vector.step(np.zeros(1, int)).crashed[0]
        vector.reset(0, seed=0)
    assert vector.restarts == 5
