"""Episodes for benchmarks that need rows but no game."""

import numpy as np
from numpy.typing import NDArray

from mbrl.episode import Episode


def moving_square(
    rows: int, shape: tuple[int, int, int], seed: int, *, high: int = 255, actions: int = 6
) -> list[Episode]:
    """Episodes of 100 to 500 steps in which a square moves over a fixed background.

    Args:
        rows: at least this many in all.
        shape: (H, W, C) of the frames, uint8.
        seed: of everything.
        high: value of the square; the background has about a third of it in places.
        actions: size of the discrete action space; actions are random.
    """
    rng = np.random.default_rng(seed)
    height, width, _ = shape
    side = max(1, height // 8)
    background = (rng.random(shape) < 0.1).astype(np.uint8) * (high * 90 // 255)
    episodes: list[Episode] = []
    total = 0
    while total < rows:
        n = int(rng.integers(101, 502))
        obs = np.repeat(background[None], n, axis=0)
        path = rng.integers(-2, 3, size=(n, 2)).cumsum(axis=0) % (height - side, width - side)
        for frame, (y, x) in zip(obs, path, strict=True):
            frame[y : y + side, x : x + side] = high
        episodes.append(_episode(f"{len(episodes):08d}", obs, rng, actions))
        total += n
    return episodes


def _episode(
    eps_id: str, obs: NDArray[np.uint8], rng: np.random.Generator, actions: int
) -> Episode:
    """A whole episode of these frames that terminates, with random actions and rewards."""
    n = len(obs)
    acted = np.arange(n) < n - 1
    return Episode(
        eps_id=eps_id,
        t0=0,
        obs=obs,
        actions=np.where(acted, rng.integers(0, actions, n), 0),
        rewards=np.where(acted, rng.random(n), 0).astype(np.float32),
        terminateds=np.arange(n) == n - 2,
        truncateds=np.zeros(n, bool),
        life_loss=np.zeros(n, bool),
        ended=True,
    )
