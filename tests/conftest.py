"""Shared by all tests: a quiet, headless, single-threaded process and one small local Ray."""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("SDL_AUDIODRIVER", "dummy")
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# without it Ray turns 127.0.0.1 into the machine's public address and listens there
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

import pytest

from agents import numerics


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A local Ray with two CPUs, started at first use and stopped after the last test."""
    import ray

    if ray.is_initialized():
        yield
        return
    ray.init(
        "local",
        num_cpus=2,
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}},
    )
    yield
    ray.shutdown()


@pytest.fixture
def bfloat16_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets any processor compute in bfloat16, if only by imitation: slow, but the same paths."""
    monkeypatch.setattr(numerics, "has_bfloat16", lambda device: True)
