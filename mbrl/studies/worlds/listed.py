"""The environments of the table: others' packages, and odd ones of our own.

What an entry says beside its id is what a user would have to say too.
"""

from dataclasses import dataclass, field
from typing import Any

from mbrl.studies.worlds.odd import ODDITIES


@dataclass(frozen=True)
class World:
    """One row of the table.

    Attributes:
        name: the id, or what is odd.
        package: on PyPI.
        env: settings of the section `env`.
    """

    name: str
    package: str
    env: dict[str, Any] = field(default_factory=dict)


def _of(package: str, *ids: str, **env: Any) -> list[World]:
    return [World(one, package, {"id": one, **env}) for one in ids]


FOREIGN = [
    *_of(
        "gymnasium",
        "CartPole-v1",
        "Acrobot-v1",
        "MountainCar-v0",
        "MountainCarContinuous-v0",
        "Pendulum-v1",
        "FrozenLake-v1",
        "CliffWalking-v1",
        "Taxi-v3",
        "Blackjack-v1",
    ),
    *_of("box2d", "LunarLander-v3", "BipedalWalker-v3"),
    *_of("box2d", "CarRacing-v3", image_size=32),
    *_of("MinAtar", "MinAtar/Breakout-v1", "MinAtar/Freeway-v0"),
    *_of("ale-py", "ALE/Pong-v5", "ALE/Boxing-v5", image_size=32),
    *_of("mujoco", "HalfCheetah-v5", "Hopper-v5", "Reacher-v5", "InvertedPendulum-v5"),
    *_of(
        "minigrid",
        "minigrid:MiniGrid-Empty-5x5-v0",
        "minigrid:MiniGrid-DoorKey-5x5-v0",
        observe=("image",),
        image_values=11,
    ),
    *_of("minigrid", "minigrid:BabyAI-GoToRedBall-v0", observe=("image",), image_values=11),
    *_of(
        "highway-env",
        "highway_env:highway-fast-v0",
        "highway_env:parking-v0",
        "highway_env:merge-v0",
    ),
    *_of("shimmy", "shimmy:dm_control/cartpole-swingup-v0", "shimmy:dm_control/walker-walk-v0"),
    *_of(
        "gymnasium-robotics",
        "gymnasium_robotics:FetchReach-v4",
        "gymnasium_robotics:PointMaze_UMaze-v3",
    ),
    *_of("popgym", "popgym:popgym-RepeatPreviousEasy-v0", "popgym:popgym-CountRecallEasy-v0"),
    *_of("flappy-bird-gymnasium", "flappy_bird_gymnasium:FlappyBird-v0"),
]

ODD = [
    World(name, "odd", {"factory": "mbrl.studies.worlds.odd.make", "kwargs": {"name": name}})
    for name in ODDITIES
]

WORLDS = {"foreign": FOREIGN, "odd": ODD}
