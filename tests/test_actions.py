"""Every action space: what is in replay is what the environment was given, and models read it."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import odd_actions
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from gymnasium import spaces
from odd_actions import NESTED, SPACES
from test_resume import assert_same_run

from agents.modules import latent_spec
from envs import EnvError, EnvSettings, VectorEnv, make_env
from envs.actions import bounded, from_step, parts_of, stored_type
from envs.contract import check_env
from mbrl import train
from mbrl.acting import ActingPolicy, LatentPolicy, RandomPolicy
from mbrl.actions import ActionCodec, ActionVector, flat, stored
from mbrl.collect import Collector, spaces_of
from mbrl.config.schema import CollectSettings
from mbrl.errors import ConfigError
from mbrl.imagine import DreamEnv, DreamVectorEnv
from mbrl.replay import ReplayStore
from mbrl.run.open import open_run
from mbrl.run.run import Run
from mbrl.world_model.layouts import make_world_model

COLLECT = CollectSettings(num_envs=2, fragment_steps=4)


def env_of(name: str, **more: Any) -> EnvSettings:
    return EnvSettings(factory="odd_actions.OddActions", kwargs={"actions": name}, **more)


def latent_policy(env: EnvSettings) -> LatentPolicy:
    """An untrained one, which draws at random."""
    seen, actions = spaces_of(env)
    settings = tiny.config(Path("unused")).policy
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make_world_model(seen, actions, tiny.model_settings()).eval()
        module: Any = latent_spec(settings, model.feature_size, actions).build()
    return LatentPolicy(model, lambda: module, actions, 1, torch.device("cpu"))


def leaves(action: Any) -> list[list[float]]:
    """Numbers of one action, leaf by leaf, as the environment was given it."""
    if isinstance(action, dict):
        return [leaf for one in action.values() for leaf in leaves(one)]
    if isinstance(action, tuple):
        return [leaf for one in action for leaf in leaves(one)]
    return [np.asarray(action, np.float64).reshape(-1).tolist()]


def recorded(actions: np.ndarray[Any, Any], row: int) -> list[list[float]]:
    """The same of one row of replay."""
    names = actions.dtype.names
    parts = [actions] if names is None else [actions[name] for name in names]
    return [np.asarray(part[row], np.float64).reshape(-1).tolist() for part in parts]


@pytest.mark.filterwarnings("ignore:.*Box low's precision lowered:UserWarning")
@pytest.mark.parametrize("who", ["random", "policy"])
@pytest.mark.parametrize("name", SPACES)
def test_replay_holds_exactly_what_the_environment_was_given(
    name: str, who: str, tmp_path: Path
) -> None:
    env = env_of(name)
    policy: ActingPolicy = (
        RandomPolicy(spaces_of(env)[1], 0) if who == "random" else latent_policy(env)
    )
    store = ReplayStore(tmp_path)
    collector = Collector(env, COLLECT, store, root_seed=0)
    odd_actions.given.clear()
    receipt = collector.collect(24, policy, 0)
    assert receipt.steps == len(odd_actions.given) == 24 and receipt.env_restarts == 0
    by_slot = [odd_actions.given[slot::2] for slot in range(2)]
    episodes = list(store.fragments())
    found = []
    for episode in episodes:
        found += [recorded(episode.actions, row) for row in range(episode.steps)]
    assert found == [leaves(action) for slot in by_slot for action in slot]
    assert len({str(row) for row in found}) > 1 or name == "one action"
    again = Collector(env, COLLECT, store, root_seed=0)  # as a resumed run plays it again
    again.load_state_dict(collector.state_dict())
    assert again.unrepeatable == 0
    again.close()
    collector.close()


def test_parts_are_columns_of_their_own_on_disk(tmp_path: Path) -> None:
    store = ReplayStore(tmp_path)
    collector = Collector(env_of("nested"), COLLECT, store, root_seed=0)
    collector.collect(10, RandomPolicy(collector.vector.single_action_space, 0), 0)
    collector.close()
    path = next((tmp_path / "data").glob("*.parquet"))
    columns = pq.read_table(path).to_pydict()
    assert [name for name in columns if name.startswith("actions")] == [
        "actions.gear",
        "actions.arm.keys",
        "actions.arm.force",
        "actions.arm.notch",
        "actions.legs.0",
        "actions.legs.1",
    ]
    assert columns["actions.gear"][5] is None  # where the first episode ended
    assert columns["actions.arm.force"][5] is None
    assert set(columns["actions.gear"][:5]) <= {-1, 0, 1}
    assert len(columns["actions.arm.force"][0]) == 4
    assert isinstance(columns["actions.arm.notch"][0], int)


def test_a_policy_that_draws_fractions_of_whole_numbers_is_refused() -> None:
    for name in ("box of integers", "multi discrete", "nested"):
        vector = VectorEnv(env_of(name), 1)
        vector.reset(0, 0)
        shape, dtype = stored_type(vector.single_action_space)
        actions = np.zeros((1, *shape), dtype)
        if name == "nested":
            with pytest.raises(ValueError, match="expected an array with the fields"):
                vector.step(flat(actions))
            actions["legs.0"] = 9
            with pytest.raises(ValueError, match=r"actions.legs.0: expected .* got \[\[9, 9\]\]"):
                vector.step(actions)
        else:
            with pytest.raises(ValueError, match=r"actions: expected .* integers, got .* float64"):
                vector.step(actions.astype(np.float64))
        vector.close()


def test_numbers_that_the_environments_dtype_does_not_hold_are_refused() -> None:
    vector = VectorEnv(env_of("box of bytes"), 1)
    vector.reset(0, 0)
    with pytest.raises(ValueError, match=r"actions: expected numbers that uint8 holds, got"):
        vector.step(np.array([[[256], [0]]]))


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("no bounds", -2.0, 2.0),
        ("no upper bound", 5.0, 7.0),
        ("1e30", -2.0, 2.0),
        ("3e38", -2.0, 2.0),
        ("integers without bounds", -2, 2),
    ],
)
def test_a_box_without_bounds_gets_those_of_the_settings(
    name: str, low: float, high: float
) -> None:
    space: Any = make_env(env_of(name, action_bound=2.0)).action_space
    assert (space.low == low).all() and (space.high == high).all()
    assert space.dtype == SPACES[name].dtype


def test_bounds_that_mean_something_are_kept_and_others_filled_in_anywhere() -> None:
    assert bounded(NESTED, 1.0) is NESTED
    one_sided = spaces.Tuple([spaces.Box(-np.inf, 5.0, (1,)), spaces.Box(-30.0, np.inf, (1,))])
    members: Any = bounded(one_sided, 1.0)
    assert [(float(one.low[0]), float(one.high[0])) for one in members] == [(-1, 5), (-30, 1)]


def test_assumed_bounds_are_warned_of_and_in_the_report(caplog: pytest.LogCaptureFixture) -> None:
    settings = env_of("no bounds", action_bound=3.5)
    with caplog.at_level(logging.WARNING):
        spaces_of(settings)
        spaces_of(settings)
    assert len(caplog.messages) == 1  # once in a process
    assert "taken as Box(-3.5, 3.5, (2,), float32): set env.action_bound" in caplog.text
    report = check_env(settings, steps=5)
    assert report.ok and report.notes[0].startswith("Actions are Box(-inf, inf")
    assert check_env(env_of("box"), steps=5).notes == ()


def test_an_environment_that_replaces_its_space_in_reset_is_not_accused() -> None:
    settings = EnvSettings(factory="odd_actions.Replacing")
    report = check_env(settings, steps=30)
    assert report.problems == () and report.same_in_two_copies and report.same_after_reuse
    assert spaces_of(settings)[1] == SPACES["from -1"]


def test_a_space_that_changes_from_episode_to_episode_is_refused() -> None:
    settings = EnvSettings(factory="odd_actions.Replacing", kwargs={"after": "grows"})
    assert "changed the action space from Discrete" in check_env(settings, steps=30).problems[0]
    vector = VectorEnv(settings, 1)
    vector.reset(0, 0)
    with pytest.raises(EnvError, match=r"expected the actions Discrete\(2\) in every episode"):
        vector.reset(0, 1)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Text(3), "got Text at actions; choose among finitely many"),
        (
            spaces.Dict(a=spaces.Tuple([spaces.Sequence(spaces.Discrete(2))])),
            r" at actions\.a\.0; choose",
        ),
        (spaces.Graph(spaces.Discrete(2), None), "got Graph"),
        (spaces.Dict(), r"got nothing in Dict\(\)"),
        (spaces.Box(-1, 1, (0,)), "something to choose"),
        (
            spaces.Dict({"a.b": spaces.Discrete(2), "a": spaces.Dict(b=spaces.Discrete(2))}),
            r"names that differ .*, got actions\.a\.b twice",
        ),
    ],
)
def test_a_space_that_cannot_be_done_is_one_sentence(
    space: spaces.Space[Any], message: str
) -> None:
    with pytest.raises(EnvError, match=message):
        parts_of(space)
    with pytest.raises(ConfigError, match=message):
        ActionCodec(space)


# -- what models read ----------------------------------------------------------------------------


def vector_of(space: spaces.Space[Any], actions: Any) -> list[Any]:
    """By way of the flat form."""
    shape, dtype = stored_type(space)
    array = np.zeros((len(actions), *shape), dtype)
    for row, action in enumerate(actions):
        array[row] = action
    codec = ActionCodec(space)
    vector = ActionVector(codec)
    assert vector.state_dict() == {}  # models have the weights that they always had
    assert codec.zeros(2, torch.device("cpu")).shape[1:] == flat(array).shape[1:]
    return [[round(x, 3) for x in row] for row in vector(torch.as_tensor(flat(array))).tolist()]


def test_choices_are_one_hot_from_where_the_space_starts() -> None:
    space: Any = SPACES["from 5"]
    assert vector_of(space, [5, 6, 0]) == [[1, 0], [0, 1], [1, 0]]  # 0: no action yet
    assert vector_of(SPACES["from -1"], [-1, 1]) == [[1, 0, 0], [0, 0, 1]]
    both = [[1, 0, 1, 0, 0, 0, 0, 0, 1], [0, 1, 0, 0, 1, 1, 0, 0, 0]]
    assert vector_of(SPACES["multi discrete"], [[0, 0, 3], [1, 2, 0]]) == both
    assert vector_of(SPACES["multi binary"], [[0, 1, 0]]) == [[1, 0, 0, 1, 1, 0]]


def test_numbers_are_rescaled_by_their_bounds_but_those_of_a_plain_box_stay() -> None:
    assert vector_of(SPACES["box"], [[2.0, -0.5]]) == [[2.0, -0.5]]
    assert vector_of(spaces.Box(0, 4, (1, 2)), [[[4.0, 1.0]]]) == [[1.0, -0.5]]
    assert vector_of(SPACES["box of integers"], [[-1, 2]]) == [[-1.0, 1.0]]
    assert vector_of(SPACES["box 0-d"], [0.25]) == [[0.25]]
    assert vector_of(spaces.Box(3.0, 3.0, (1, 1)), [[[3.0]]]) == [[0.0]]  # nothing to choose


def test_the_vector_of_a_nested_action_has_all_parts() -> None:
    action = (-1, [1, 0], [[-2, 0], [1, 2]], 250, [1, 3], [0.5])
    vector = [1, 0, 0, 0, 1, 1, 0, -1, 0, 0.5, 1, 1, 0, 1, 0, 0, 0, 1, 0]
    assert vector_of(NESTED, [action]) == [vector]


def test_flat_actions_come_back_as_they_were() -> None:
    for space in map(SPACES.__getitem__, ("box (2, 2)", "multi binary", "nested", "from -1")):
        actions = ActionCodec(space).sample(np.random.default_rng(0), 6)
        assert np.array_equal(stored(flat(actions), actions.dtype), actions)


def test_plain_spaces_draw_the_numbers_that_they_always_drew() -> None:
    counted = ActionCodec(SPACES["discrete"]).sample(np.random.default_rng(3), 7)
    assert np.array_equal(counted, np.random.default_rng(3).integers(0, 3, 7))
    low, high = np.full(2, -2, np.float32), np.full(2, 2, np.float32)
    drawn = ActionCodec(SPACES["box"]).sample(np.random.default_rng(3), 7)
    uniform = np.random.default_rng(3).uniform(low, high, (7, 2)).astype(np.float32)
    assert np.array_equal(drawn, uniform) and drawn.dtype == np.float32


def test_random_choices_and_numbers_fill_their_space() -> None:
    drawn: Any = ActionCodec(NESTED).sample(np.random.default_rng(0), 4_000)
    assert set(drawn["gear"].tolist()) == {-1, 0, 1}
    assert {tuple(keys) for keys in drawn["arm.keys"].tolist()} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert set(drawn["arm.notch"].tolist()) == set(range(-3, 251))
    assert abs(drawn["arm.force"].mean()) < 0.05 and np.abs(drawn["arm.force"]).max() > 1.99
    assert drawn["legs.0"].max(0).tolist() == [1, 3]


# -- end to end ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["multi discrete", "box (2, 2)", "nested"])
def test_a_dream_takes_batched_actions_as_gymnasium_gives_them(name: str) -> None:
    env = env_of(name)
    seen, actions = spaces_of(env)
    model = make_world_model(seen, actions, tiny.model_settings()).eval()
    starts = model.initial(4, torch.device("cpu"))
    dream = DreamEnv(model, actions, starts, 3, torch.Generator().manual_seed(0))
    vector = DreamVectorEnv(dream, horizon=5)
    vector.reset(seed=0)
    vector.action_space.seed(0)
    batched = vector.action_space.sample()
    features, rewards, *_ = vector.step(batched)
    assert features.shape == (3, model.feature_size) and rewards.shape == (3,)
    rows: Any = from_step(actions, batched, 3)
    if name == "nested":
        assert rows["legs.0"].tolist() == batched["legs"][0].tolist()
        assert rows["arm.notch"].tolist() == batched["arm"]["notch"].tolist()
    else:
        assert rows.tolist() == batched.tolist()


@pytest.mark.parametrize(
    ("name", "agent", "algorithm"),
    [
        ("multi discrete", "dream", "ppo"),
        ("box (2, 2)", "dream", "ppo"),
        ("from -1", "dream", "q"),
        ("from 5", "model_free", "ppo"),
    ],
)
def test_an_agent_trains_and_is_judged(
    name: str, agent: str, algorithm: str, tmp_path: Path
) -> None:
    changes: Any = {"env": env_of(name).model_dump(), "policy": {"algorithm": algorithm}}
    config = tiny.config(tmp_path / "run", agent=agent, env_steps=64, **changes)
    result = train(config)
    assert result["env_steps"] == 64 and len(result["eval"]["returns"]) == 3
    run = open_run(tmp_path / "run")
    env = run.env()
    action = run.agent().act(env.reset(seed=0)[0])
    assert env.action_space.contains(action)
    env.step(action)
    dream = run.dream_env(num_envs=2)
    dream.reset()
    dream.step(dream.action_space.sample())


def test_a_stopped_run_with_nested_actions_resumes_exactly(tmp_path: Path) -> None:
    def stop(run: Run) -> None:
        if run.env_steps == 48:  # in the middle of episodes
            run.request_stop()

    changes: Any = {
        "env": env_of("nested").model_dump(),
        "env_steps": 96,
        "collect": {"repeat": 2.0},
    }
    train(tiny.config(tmp_path / "never", **changes))
    with pytest.raises(SystemExit):
        train(tiny.config(tmp_path / "run", **changes), on_iteration=stop)
    train(tiny.config(tmp_path / "run", **changes))
    assert_same_run(tmp_path / "never", tmp_path / "run")


def test_values_of_actions_need_one_discrete_space(tmp_path: Path) -> None:
    changes: Any = {"env": env_of("multi discrete").model_dump(), "policy": {"algorithm": "q"}}
    with pytest.raises(ConfigError, match=r"algorithm=q: expected a Discrete action space, got Mu"):
        train(tiny.config(tmp_path / "run", **changes))
