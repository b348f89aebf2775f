"""One environment of the table: everything a run does with it, in a process of its own.

    python -m mbrl.studies.worlds.one world.json

Reads what to do from the file, and writes each column of the table beside it as soon as it is
known, so that whoever waits knows where it hung. Replay is compared with the environment itself,
made anew without anything of ours around it: the same seeds and actions must show, pay and end the
same.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from envs import EnvError, make_env
from envs.actions import parts_of, to_step
from envs.settings import EnvSettings
from envs.spaces import columns_of_space, values_of
from mbrl.check_env import Verdict, check
from mbrl.collect import episode_of
from mbrl.config.schema import Config
from mbrl.episode import Episode
from mbrl.errors import MbrlError
from mbrl.replay import ReplayStore
from mbrl.streams import columns_of
from mbrl.train import train

COLUMNS = ("check", "train", "evaluate", "replay", "resume", "export")
NOT_REPEATED = "the environment does not repeat itself, so replay cannot be compared"
SLOTS, EPISODES = 2, 400  # environments of a run, and episodes of each that may be looked for

MODEL = {
    "hidden": 24,
    "prior_hidden": 16,
    "code": {"groups": 4, "classes": 6},
    "encoder": {"channels": (4, 8), "hidden": 24},
    "decoder": {"channels": 4, "layers": 1, "map_channels": 4, "hidden": 16},
    "heads": {"hidden": 16},
}


def settings_of(env: dict[str, Any], folder: Path, steps: int) -> Config:
    """A run whose parts are small and all there."""
    return Config(  # type: ignore[call-arg]
        name="world",
        env=EnvSettings(**env),
        env_steps=steps,
        device="cpu",
        world_model=MODEL,
        collect={
            "num_envs": SLOTS,
            "steps_per_iteration": 64,
            "prefill_steps": 128,
            "until_reward": False,
        },
        learn_model={"train_ratio": 2, "batch_size": 8, "sequence_length": 8, "max_starts": 64},
        learn_policy={"dream_ratio": 4},
        policy={"dreams": 32, "horizon": 4, "minibatch_size": 64, "hidden": (16,)},
        evaluate={
            "every_steps": 1000,
            "episodes": 2,
            "final_episodes": 2,
            "num_envs": 2,
            "max_episode_steps": 200,
        },
        run={"dir": folder, "tensorboard": False, "threads": 1, "checkpoint_every_steps": 10_000},
    )


def columns(
    env: dict[str, Any], folder: Path, steps: int, note: Callable[[str, str], None]
) -> None:
    """Fill the row of an environment; `note` gets each column and what is in it."""
    said: list[str] = []
    config = settings_of(env, folder / "run", steps)
    verdict = check(config, steps=200, seconds=120, say=said.append)
    reason = _reason(said)
    if any(line.startswith("refused") for line in said) or verdict is Verdict.NO_TIME:
        note("check", f"refused: {reason}")
        return
    note("check", "ok" if verdict is Verdict.READY else f"told: {reason}")
    result = train(config)
    note("train", _agree(result["budget"]["collected_steps"] >= steps, "steps are missing"))
    scores = result["eval"]["returns"]
    note("evaluate", _agree(len(scores) == 2 and bool(np.isfinite(scores).all()), f"got {scores}"))
    store = ReplayStore(folder / "run" / "replay")
    repeats = "another episode" not in reason
    note("replay", compared(config.env, store) if repeats else f"told: {NOT_REPEATED}")
    before = [one.eps_id for one in store.fragments()]
    more = train(settings_of(env, folder / "run", steps + 128))
    after = [one.eps_id for one in ReplayStore(folder / "run" / "replay").fragments()]
    whole = more["env_steps"] >= steps + 128 and after[: len(before)] == before
    note("resume", _agree(whole, f"{len(before)} fragments became {len(after)}"))
    note("export", exported(folder))


def _reason(said: list[str]) -> str:
    """Why an environment is refused, of what `check-env` said."""
    split = [line.split(maxsplit=1) for line in said]
    wrong = [text for label, text in split if label in ("refused", "problem")]
    return "; ".join(wrong or [text for label, text in split if label == "note"])


def _agree(fine: bool, otherwise: str) -> str:
    return "ok" if fine else f"failed: {otherwise}"


def exported(folder: Path) -> str:
    """Whether Minari gives back the episodes it was given."""
    from mbrl.replay.minari_dataset import export, load

    store = ReplayStore(folder / "run" / "replay")
    ended = {one.eps_id: one for one in store.episodes() if one.ended}
    if not ended:
        return "told: no episode has ended"
    export(store, "world-v0", folder / "minari")
    load("world-v0", folder / "again", folder / "minari")
    for one in ReplayStore(folder / "again").episodes():
        theirs = ended.pop(one.eps_id).columns
        if any(not np.array_equal(theirs[name], rows) for name, rows in one.columns.items()):
            return f"failed: episode {one.eps_id} came back changed"
    return _agree(not ended, f"{len(ended)} episodes did not come back")


def compared(env: EnvSettings, store: ReplayStore) -> str:
    """Whether every episode in replay is what the environment does with its seed and actions."""
    seeds = dict(
        episode_of(0, 0, slot, number) for slot in range(SLOTS) for number in range(EPISODES)
    )
    count = 0
    for episode in store.episodes():
        seed = seeds.get(episode.eps_id)
        if seed is None:
            continue
        told = played(env, seed, episode)
        if count == 0 and told != played(env, seed, episode):
            return f"told: {NOT_REPEATED}"
        if told:
            return f"failed: {told}"
        count += 1
    return _agree(count > 0, "no episode could be found again")


def played(env: EnvSettings, seed: int, episode: Episode) -> str:
    """Where the environment and an episode first differ; "" if they are the same."""
    made = _bare(env)
    try:
        obs, _ = made.reset(seed=seed)
        kept = columns_of(episode.obs)
        names = list(columns_of_space(made.observation_space))
        parts = parts_of(made.action_space)
        steps = episode.steps
        choices = to_step(made.action_space, parts, episode.actions[:steps], steps)
        for t in range(episode.rows):
            for name, value in zip(names, values_of(made.observation_space, obs), strict=True):
                if not np.array_equal(np.asarray(value, kept[name].dtype), kept[name][t]):
                    return f"{name} of step {t} is {kept[name][t]}, the environment shows {value}"
            if t == steps:
                break
            obs, reward, terminated, truncated, _ = made.step(choices[t])
            caused = np.float32(np.asarray(reward).item()), bool(terminated), bool(truncated)
            rows = episode.rewards[t], episode.terminateds[t], episode.truncateds[t]
            if caused != rows:
                return f"step {t} caused {rows}, in the environment {caused}"
    finally:
        made.close()  # type: ignore[no-untyped-call]
    return ""


def _bare(env: EnvSettings) -> gym.Env[Any, Any]:
    """The environment as its package makes it, unless settings change what it shows."""
    plain = env.id is not None and not env.model_fields_set - {"id", "kwargs"}
    if plain and not str(env.id).startswith(("ALE/", "MinAtar/")):
        return gym.make(str(env.id), **env.kwargs)
    return make_env(env)


def main(path: str) -> None:
    """Do what the file says; a column that breaks says so, and ends the row."""
    file = Path(path)
    asked = json.loads(file.read_text(encoding="utf-8"))
    found: dict[str, str] = {}

    def note(column: str, value: str) -> None:
        found[column] = value[:400]
        file.with_suffix(".found.json").write_text(json.dumps(found), encoding="utf-8")

    try:
        columns(asked["env"], file.parent, asked["steps"], note)
    except (MbrlError, EnvError) as error:
        column = next(name for name in COLUMNS if name not in found)
        word = "refused" if column in ("check", "train") else "failed"  # they begin nothing
        note(column, f"{word}: {error}")


if __name__ == "__main__":
    main(sys.argv[1])
