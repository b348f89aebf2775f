"""What to install for environments of others, in one place: messages and `mbrl envs` read it.

The commands are those that work beside the pinned torch and gymnasium. gymnasium's own hint for
Box2D, for one, asks for a package that has to be compiled.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Extra:
    """Environments that come together.

    Attributes:
        name: of the family.
        modules: that must be found.
        pip: what to install.
        ids: how the ids begin, as gymnasium registers them.
        prefix: what stands before an id, so that its package is imported; "" if nothing must.
    """

    name: str
    modules: tuple[str, ...]
    pip: str
    ids: tuple[str, ...]
    prefix: str = ""


EXTRAS = {
    "classic": Extra("classic control", (), "", ("Acrobot", "CartPole", "MountainCar", "Pendulum")),
    "toy": Extra("toy text", (), "", ("Blackjack", "CliffWalking", "FrozenLake", "Taxi")),
    "box2d": Extra(
        "Box2D",
        ("Box2D", "pygame"),
        "'reverie-rl[box2d]'",
        ("BipedalWalker", "CarRacing", "LunarLander"),
    ),
    "atari": Extra("Atari", ("ale_py",), "ale-py", ("ALE/",)),
    "minatar": Extra("MinAtar", ("minatar",), "MinAtar", ("MinAtar/",)),
    "mujoco": Extra(
        "MuJoCo",
        ("mujoco",),
        "'mujoco<4' imageio",
        (
            "Ant-",
            "HalfCheetah",
            "Hopper",
            "Humanoid",
            "InvertedDoublePendulum",
            "InvertedPendulum",
            "Pusher",
            "Reacher",
            "Swimmer",
            "Walker2d",
        ),
    ),
    "dm_control": Extra(
        "DeepMind Control",
        ("dm_control", "shimmy"),
        "shimmy dm_control",
        ("dm_control/",),
        "shimmy:",
    ),
    "minigrid": Extra("MiniGrid", ("minigrid",), "minigrid", ("BabyAI-", "MiniGrid-"), "minigrid:"),
    "highway": Extra(
        "highway-env",
        ("highway_env",),
        "highway-env",
        ("highway-", "intersection-", "merge-", "parking-", "racetrack-", "roundabout-"),
        "highway_env:",
    ),
    "robotics": Extra(
        "Gymnasium-Robotics",
        ("gymnasium_robotics",),
        "gymnasium-robotics 'mujoco<4'",
        ("AntMaze", "Fetch", "HandReach", "PointMaze"),
        "gymnasium_robotics:",
    ),
    "popgym": Extra("POPGym", ("popgym",), "popgym", ("popgym-",), "popgym:"),
}


def install(name: str) -> str:
    """The command that installs what an entry of `EXTRAS` needs."""
    return f"pip install {EXTRAS[name].pip}"
