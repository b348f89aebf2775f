"""A Pong of our own: small, fast, and with a state that is known to the last bit.

In: actions (0 stay, 1 up, 2 down). Out: grey frames uint8 (size, size, 1), a reward of +1 or -1
when a point is won or lost, and the state itself in `info["ram"]`, named by `STATE`. It serves to
measure what a world model keeps of a small object, and what its code knows of things that a code
should not hold: a background texture that never changes within an episode, and noise that is new
in every frame. It refuses to be Atari's Pong: no score is shown, and all numbers are whole pixels.

The rules, for one step: both paddles move, then the ball. It bounces off the top and bottom rows.
At a paddle's face it turns round, and the farther from the paddle's middle it was hit, the steeper
it leaves. Past a paddle it flies on to the edge, which is a point; then there is no ball for
`SERVE_PAUSE` frames, until it starts anew from the middle column in a random direction. The
opponent (left) follows the ball while it comes nearer, but sleeps through every third step or so,
and a steep ball is faster than any paddle. An episode ends when one side has `points` points.

An object lies where the state says: `row` and `column` are those of its upper left pixel.
"""

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from envs.family import Family, Reset, Step, make_plain

STATE = (
    "ball_row",
    "ball_column",
    "own_row",
    "other_row",
    "ball_velocity_row",
    "ball_velocity_column",
    "ball_visible",
    "texture_id",
    "noise_id",
)
"""Names of the bytes of `info["ram"]`; without a ball, its row, column and velocity are 0."""

VELOCITY_OFFSET = 128
"""Added to a velocity (pixels per step) in the state, so that it fits a byte."""
SERVE_PAUSE = 8
"""Frames without a ball at the start of an episode and after a point."""
TEXTURES = 8
"""Fixed background textures; `texture_id` says which one, and is 0 without texture."""
PATTERNS = 8
"""Fixed noise patterns; `noise_id` says which one a frame has, and is 0 without noise."""
BACKGROUND, SPRITE = 88, 232
"""Grey levels without texture and noise: the middles of the bins 5 and 14 of 16 equal ones."""

_TEXTURE_SWING = 64  # grey levels at contrast 1: darker or lighter by at most this
_TEXTURE_BLOCK = 4  # pixels
_SLEEP = 0.3  # share of the steps in which the opponent does not move


@dataclass(frozen=True)
class Court:
    """Where everything is and how fast, for one size of frame; all in pixels."""

    size: int  # height and width of the frame
    ball: int  # side of the ball
    paddle_height: int
    paddle_width: int
    own_column: int  # leftmost of the agent's paddle
    other_column: int  # leftmost of the opponent's paddle
    speed: int  # columns per step of the ball, and rows per step of the paddles
    steepest: int  # rows per step of the ball at most


def court(size: int = 64, ball: int = 2) -> Court:
    """Lay out the court for a frame of 16 to 255 pixels and a ball of 1 to size / 8 pixels."""
    if not 16 <= size <= 255:
        raise ValueError(f"size: expected 16 to 255 pixels, got {size}")
    if not 1 <= ball <= size // 8:
        raise ValueError(f"ball: expected 1 to {size // 8} pixels for size={size}, got {ball}")
    width, margin, speed = max(1, size // 32), size // 16, max(1, size // 32)
    return Court(
        size=size,
        ball=ball,
        paddle_height=max(3, size // 8),
        paddle_width=width,
        own_column=size - margin - width,
        other_column=margin,
        speed=speed,
        steepest=speed + 1,
    )


def texture(index: int, size: int) -> NDArray[np.float32]:
    """Texture `index` of `TEXTURES`: blocks of 4 x 4 pixels, (size, size) in [-1, 1]."""
    blocks = -(-size // _TEXTURE_BLOCK)
    drawn = np.random.default_rng((1, index)).uniform(-1, 1, (blocks, blocks))
    whole = drawn.repeat(_TEXTURE_BLOCK, 0).repeat(_TEXTURE_BLOCK, 1)
    return whole[:size, :size].astype(np.float32)


def pattern(index: int, size: int) -> NDArray[np.float32]:
    """Noise pattern `index` of `PATTERNS`: (size, size), standard normal."""
    return np.random.default_rng((2, index)).standard_normal((size, size), np.float32)


def rebound(offset: float, steepest: int, before: int) -> int:
    """The ball's rows per step after a paddle hit it; never 0, so that no rally lasts forever.

    `offset` is of the ball's middle from the paddle's, -1 (its upper end) to 1 (its lower), and
    `before` the ball's rows per step until now, which decides after a hit in the middle.
    """
    return round(offset * steepest) or (1 if before >= 0 else -1)


class PongEnv(gym.Env[NDArray[np.uint8], int]):
    """See the module's docstring. The seed and the actions decide everything, noise included."""

    def __init__(
        self,
        *,
        size: int = 64,
        ball: int = 2,
        texture: float = 0.0,
        noise: float = 0.0,
        points: int = 5,
    ) -> None:
        """Make the game; a dial out of range is a ValueError.

        Args:
            size: height and width of the frame, 16 to 255 pixels.
            ball: side of the ball, pixels.
            texture: contrast of the background, 0 to 1; one of `TEXTURES` is drawn per episode.
            noise: standard deviation in grey levels of the noise in every pixel of every frame,
                and again of the pattern, one of `PATTERNS`, that is drawn per frame and added.
            points: of one side, which end the episode.
        """
        self.court = court(size, ball)
        if not 0 <= texture <= 1:
            raise ValueError(f"texture: expected a contrast of 0 to 1, got {texture}")
        if not 0 <= noise <= 64:
            raise ValueError(f"noise: expected 0 to 64 grey levels, got {noise}")
        if points < 1:
            raise ValueError(f"points: expected at least 1, got {points}")
        self.observation_space = gym.spaces.Box(0, 255, (size, size, 1), np.uint8)
        self.action_space = gym.spaces.Discrete(3)
        self._points, self._noise = points, np.float32(noise)
        self._backgrounds = _backgrounds(size, texture)
        self._patterns = [pattern(index, size) * self._noise for index in range(PATTERNS)]
        self._noise_id = 0  # of the frame; the rest of the state begins in `reset`
        self._over = True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        """Start an episode: paddles in the middle, no ball yet, a texture of its own."""
        super().reset(seed=seed, options=options)
        self._texture_id = int(self.np_random.integers(len(self._backgrounds)))
        self._score, self._over = [0, 0], False  # own, other
        self._own = self._other = (self.court.size - self.court.paddle_height) // 2
        self._remove_ball()
        return self._picture(), {"ram": self._ram()}

    def step(self, action: int) -> Step:
        """Move the paddles, then the ball."""
        if self._over:
            raise RuntimeError("expected reset() after the end of an episode, got step()")
        if action not in (0, 1, 2):
            raise ValueError(f"expected an action of 0, 1 or 2, got {action!r}")
        speed = self.court.speed
        self._own = self._inside(self._own + (0, -speed, speed)[action])
        self._move_other()
        point = 0
        if self._pause == 0:
            point = self._move_ball()
        elif self._pause == 1:
            self._serve()
        else:
            self._pause -= 1
        if point:
            self._score[point < 0] += 1
            self._over = max(self._score) == self._points
            self._remove_ball()
        return self._picture(), float(point), self._over, False, {"ram": self._ram()}

    def _inside(self, row: int) -> int:
        """The nearest row where a paddle is whole."""
        return min(max(row, 0), self.court.size - self.court.paddle_height)

    def _move_other(self) -> None:
        """The opponent: towards the ball while it comes nearer, unless asleep."""
        asleep = self.np_random.random() < _SLEEP  # drawn always: one draw per step
        if asleep or self._pause > 0 or self._right > 0:
            return
        away = self._middle_distance(self._other)
        step = min(self.court.speed, round(abs(away)))
        self._other = self._inside(self._other + (step if away > 0 else -step))

    def _middle_distance(self, paddle_row: int) -> float:
        """Rows from a paddle's middle down to the ball's."""
        return self._row + self.court.ball / 2 - paddle_row - self.court.paddle_height / 2

    def _remove_ball(self) -> None:
        """No ball until the next serve."""
        self._pause = SERVE_PAUSE  # frames until the serve; 0 while there is a ball
        self._row = self._column = self._down = self._right = 0

    def _serve(self) -> None:
        """Put the ball in the middle column, at a random row, in a random direction."""
        court, rng = self.court, self.np_random
        self._pause = 0
        quarter = court.size // 4
        self._row = int(rng.integers(quarter, court.size - quarter - court.ball + 1))
        self._column = (court.size - court.ball) // 2
        self._down = int(rng.integers(1, court.steepest + 1)) * int(rng.choice((-1, 1)))
        self._right = court.speed * int(rng.choice((-1, 1)))

    def _move_ball(self) -> int:
        """Move the ball; the point it makes: 1 won, -1 lost, 0 none."""
        court = self.court
        lowest = court.size - court.ball
        self._row += self._down
        if self._row < 0 or self._row > lowest:
            self._row = -self._row if self._row < 0 else 2 * lowest - self._row
            self._down = -self._down
        before, self._column = self._column, self._column + self._right
        if self._right > 0:
            self._hit(self._own, court.own_column - court.ball, before)
        else:
            self._hit(self._other, court.other_column + court.paddle_width, before)
        if self._column < 0:
            return 1
        return -1 if self._column > lowest else 0

    def _hit(self, paddle_row: int, face: int, before: int) -> None:
        """Turn the ball round if it reached the column `face` in this step and met the paddle."""
        court = self.court
        reached = (
            before < face <= self._column if self._right > 0 else self._column <= face < before
        )
        if not reached or not -court.ball < self._row - paddle_row < court.paddle_height:
            return
        offset = self._middle_distance(paddle_row) / ((court.paddle_height + court.ball) / 2)
        self._down = rebound(offset, court.steepest, self._down)
        self._column, self._right = face, -self._right

    def _ram(self) -> NDArray[np.uint8]:
        """The state, in the order of `STATE`."""
        ball = (self._row, self._column)
        velocity = (self._down + VELOCITY_OFFSET, self._right + VELOCITY_OFFSET)
        visible = self._pause == 0
        ids = (self._texture_id, self._noise_id)
        return np.array((*ball, self._own, self._other, *velocity, visible, *ids), np.uint8)

    def _picture(self) -> NDArray[np.uint8]:
        """Draw the background, the paddles, the ball if there is one, and the noise over all."""
        court, frame = self.court, self._backgrounds[self._texture_id].copy()
        paddle = (court.paddle_height, court.paddle_width)
        sprites = [(self._own, court.own_column, *paddle)]
        sprites += [(self._other, court.other_column, *paddle)]
        if self._pause == 0:
            sprites += [(self._row, self._column, court.ball, court.ball)]
        for row, column, high, wide in sprites:
            frame[row : row + high, column : column + wide] = SPRITE
        if self._noise > 0:
            self._noise_id = int(self.np_random.integers(PATTERNS))
            noise = self.np_random.standard_normal(frame.shape[:2], np.float32) * self._noise
            noise += self._patterns[self._noise_id]
            noise += frame[..., 0]
            frame = np.rint(noise).clip(0, 255).astype(np.uint8)[..., None]
        return frame


def _backgrounds(size: int, contrast: float) -> list[NDArray[np.uint8]]:
    """The empty courts that an episode can have, each (size, size, 1)."""
    if contrast == 0:
        return [np.full((size, size, 1), BACKGROUND, np.uint8)]
    swing = contrast * _TEXTURE_SWING
    grey = [BACKGROUND + swing * texture(index, size) for index in range(TEXTURES)]
    return [np.rint(one).astype(np.uint8)[..., None] for one in grey]


def make(
    env_id: str, kwargs: dict[str, Any], *, max_episode_steps: int | None, ram: bool
) -> gym.Env[Any, Any]:
    """Build the game; `kwargs` are for `PongEnv`. It gives its state whatever `ram` says."""
    return make_plain(env_id, kwargs, max_episode_steps=max_episode_steps)


gym.register("reverie/Pong-v0", entry_point="envs.pong:PongEnv")
# The game itself ends only by points; an agent that never misses would play forever.
FAMILY = Family(make=make, defaults={"max_episode_steps": 2_000, "ram": False})
