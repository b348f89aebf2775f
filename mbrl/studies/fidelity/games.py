"""The games of `mbrl bench fidelity`: what their memories mean, what is to be seen, who plays.

Each `Game` names an environment, its variables in the console's memory, its objects with their
places in the frame, and a simple scripted policy by which rallies happen.

Variables are AtariARI's (Anand et al. 2019, "Unsupervised State Representation Learning in Atari",
arXiv:1906.08226, `ram_annotations.py` and its categories), all of them, for their probes to be
comparable. Maps from memory to pixels are our own, fitted to thousands of real frames of ale-py's
ROMs; `tests/test_fidelity_games.py` holds every object against real frames.

The Atari 2600 draws 210 x 160 pixels; our frames are 64 x 64 by area interpolation, so that row =
y * 64 / 210 and column = x * 64 / 160. A byte of memory holds a coordinate up to an offset. A frame
is the maximum of the last two screens, so a fast object is drawn twice while the memory is that of
the newer one. The pixel of index i has its middle at i, as centroids of pixel indices have.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs import EnvSettings
from envs.pong import STATE, court
from mbrl.errors import ConfigError
from mbrl.studies.minatar.games import MINATAR_GAMES

Array = NDArray[Any]
Ram = NDArray[np.uint8]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Box = tuple[float, float, float, float]
"""(top, left, bottom, right); bottom and right are outside."""
Locate = Callable[[Ram], tuple[Floats, Bools]]
"""Memory (N, R) to centres (N, 2) [row, column] in pixels, and whether it can be seen (N,)."""
Act = Callable[[Array, Array, np.random.Generator], Array]
"""Observations (E, ...), memories (E, R) and a stream to actions (E, ...)."""

SCREEN = (210.0, 160.0)
FRAME = 64.0
ENOUGH = 0.6  # an object counts as visible if at least this share of its height and of its width is
CATEGORIES = {
    "small": "small_object_localization",
    "agent": "agent_localization",
    "other": "other_localization",
    "score": "score_clock_lives_display",
    "misc": "misc",
}
"""AtariARI's names for what a variable is about, by ours."""


@dataclass(frozen=True)
class RamVariable:
    """One labelled byte."""

    index: int  # in the memory
    category: str  # AtariARI's, such as "small_object_localization"


@dataclass(frozen=True)
class SceneObject:
    """One object of a game, and where a detector shall look for it."""

    name: str  # "ball", "own_paddle", "other_paddle", ...
    region: tuple[int, int, int, int]  # pixels of the frame, top, left, bottom, right (outside)
    locate: Locate
    radius: float = 3.0  # pixels; a drawing this near counts as recalled
    window: tuple[int, int] = (3, 3)  # rows and columns, odd, of a box that holds the whole object


@dataclass(frozen=True)
class Game:
    """One game of the study."""

    name: str  # on the command line and in results
    env: EnvSettings  # with the memory kept where there is one
    variables: Mapping[str, RamVariable] = field(default_factory=dict)
    objects: tuple[SceneObject, ...] = ()  # what a drawing should keep
    act: Act | None = None  # the scripted policy; None for random actions only

    @property
    def categories(self) -> dict[str, str]:
        """The category of every variable, by name."""
        return {name: variable.category for name, variable in self.variables.items()}


# -- from memory to places ------------------------------------------------------------------------


@dataclass(frozen=True)
class Axis:
    """Where the middle of an object is along one axis, in screen pixels: ram[index] + offset."""

    offset: float
    size: float  # of the object, screen pixels
    index: int | None = None  # None for one that never moves

    def middle(self, ram: Ram) -> Floats:
        """Screen coordinate of the middle, (N,)."""
        if self.index is None:
            return np.full(len(ram), self.offset)
        return ram[:, self.index].astype(np.float64) + self.offset


def sprite(
    name: str,
    row: Axis,
    column: Axis,
    field: Box,
    shown: Callable[[Ram], Bools] | None = None,
    *,
    region: tuple[int, int, int, int] | None = None,
    window: tuple[int, int] = (3, 3),
) -> SceneObject:
    """An Atari object from its vertical and its horizontal middle and size.

    What is outside the field (screen pixels) is hidden, and the centre is that of the rest. Where
    `shown`, from memories (N, R) to (N,), is False it is not drawn at all. By default the region
    is what lies in the field.
    """
    top, left, bottom, right = field

    def locate(ram: Ram) -> tuple[Floats, Bools]:
        rows, whole_rows = _clip(row.middle(ram), row.size, top, bottom)
        columns, whole_columns = _clip(column.middle(ram), column.size, left, right)
        centres = np.stack([rows, columns], -1) * (FRAME / np.array(SCREEN)) - 0.5
        visible = whole_rows & whole_columns
        return centres, visible if shown is None else visible & shown(ram)

    return SceneObject(name, region or region_of(field), locate, window=window)


def region_of(field: Box) -> tuple[int, int, int, int]:
    """The pixels of the frame that lie wholly inside a field given in screen pixels."""
    down, across = FRAME / SCREEN[0], FRAME / SCREEN[1]
    top, left, bottom, right = field
    return (
        int(np.ceil(top * down - 1e-9)),
        int(np.ceil(left * across - 1e-9)),
        int(np.floor(bottom * down + 1e-9)),
        int(np.floor(right * across + 1e-9)),
    )


def _clip(middle: Floats, size: float, low: float, high: float) -> tuple[Floats, Bools]:
    """The middle of the part between `low` and `high`, and whether that part is large enough."""
    first = np.clip(middle - size / 2, low, high)
    last = np.clip(middle + size / 2, low, high)
    return (first + last) / 2, (last - first) >= ENOUGH * size


# -- from memory to actions -----------------------------------------------------------------------


def _byte(ram: Array, index: int) -> NDArray[np.int64]:
    """One byte of all memories as numbers that can be subtracted."""
    return ram[:, index].astype(np.int64)


def _towards(away: NDArray[np.int64], slack: int, less: int, more: int, stay: int) -> Array:
    """The action that makes `away` smaller: `less` above the slack, `more` below it."""
    return np.where(away > slack, less, np.where(away < -slack, more, stay))


def _pong_act(obs: Array, ram: Array, rng: np.random.Generator) -> Array:
    """Follow the ball's row, aiming anywhere on the paddle; actions 2 up, 3 down."""
    away = _byte(ram, 51) - _byte(ram, 54) + 7 + rng.integers(-6, 7, len(ram))
    return _towards(away, 4, 2, 3, 0)


def _breakout_act(obs: Array, ram: Array, rng: np.random.Generator) -> Array:
    """Serve, then follow the ball's column; actions 1 fire, 2 right, 3 left."""
    away = _byte(ram, 72) - _byte(ram, 99) + 8 + rng.integers(-6, 7, len(ram))
    return np.where(ram[:, 101] == 0, 1, _towards(away, 4, 3, 2, 0))


# the full action set: rows up, middle, down; columns left, middle, right
_COMPASS = np.array([[7, 2, 6], [4, 0, 3], [9, 5, 8]])
_REACH = 26  # columns between two boxers at which a punch lands


def _boxing_act(obs: Array, ram: Array, rng: np.random.Generator) -> Array:
    """Go to a punch's distance from the other, and punch there."""
    down = _byte(ram, 35) - _byte(ram, 34)
    across = _byte(ram, 33) - _byte(ram, 32)
    across -= np.where(across > 0, _REACH, -_REACH)
    near = (np.abs(down) < 10) & (np.abs(across) < 8) & (rng.random(len(ram)) < 0.6)
    return np.where(near, 1, _COMPASS[_towards(down, 3, 2, 0, 1), _towards(across, 3, 2, 0, 1)])


def _car_racing_act(obs: Array, ram: Array, rng: np.random.Generator) -> Array:
    """Steer towards the grey of the road ahead; (steer, gas, brake)."""
    ahead = obs[:, 30:40].astype(np.int64)
    grey = (ahead.max(-1) - ahead.min(-1)) < 24
    columns = np.arange(obs.shape[2]) - (obs.shape[2] - 1) / 2
    away = (grey * columns).sum((1, 2)) / np.maximum(grey.sum((1, 2)), 1)
    actions = np.zeros((len(obs), 3), np.float32)
    actions[:, 0] = np.clip(away / 12, -1, 1)
    actions[:, 1] = rng.uniform(0.0, 0.3, len(obs))
    return actions


# -- Atari's objects ------------------------------------------------------------------------------

_PONG = (34.0, 20.0, 194.0, 140.0)  # between the walls and the paddles
_BREAKOUT = (95.0, 8.0, 188.0, 152.0)  # below the bricks
_RING = (30.0, 16.0, 187.0, 144.0)


def _pong_paddle(name: str, index: int, offset: float, left: float) -> SceneObject:
    return sprite(
        name,
        Axis(offset, 16, index),
        Axis(left + 2, 4),
        (34.0, 0.0, 194.0, 160.0),
        lambda ram: ram[:, 50] > 0,  # drawn once the game has moved the opponent's from 0
        region=region_of((34.0, left - 2.5, 194.0, left + 7.5)),
        window=(7, 3),
    )


# -- Atari's games --------------------------------------------------------------------------------


def _variables(**groups: Mapping[str, int]) -> dict[str, RamVariable]:
    """Labelled bytes from their indices, by category."""
    return {
        name: RamVariable(index, CATEGORIES[group])
        for group, indices in groups.items()
        for name, index in indices.items()
    }


def _atari(rom: str, act: Act, *objects: SceneObject, **variables: Mapping[str, int]) -> Game:
    env = EnvSettings(id=f"ALE/{rom}-v5", ram=True)
    return Game(rom.lower(), env, _variables(**variables), objects, act)


_ATARI = (
    _atari(
        "Pong",
        _pong_act,
        sprite("ball", Axis(-12.0, 4, 54), Axis(-48.4, 2, 49), _PONG),
        _pong_paddle("own_paddle", 51, -5.0, 140.0),
        _pong_paddle("other_paddle", 50, -7.0, 16.0),
        agent={"player_y": 51, "player_x": 46},
        other={"enemy_y": 50, "enemy_x": 45},
        small={"ball_x": 49, "ball_y": 54},
        score={"enemy_score": 13, "player_score": 14},
    ),
    _atari(
        "Breakout",
        _breakout_act,
        sprite("ball", Axis(10.6, 4, 101), Axis(-48.4, 2, 99), _BREAKOUT),
        sprite(
            "paddle",
            Axis(191.0, 4),
            Axis(-39.0, 16, 72),
            (95.0, 8.0, 195.0, 152.0),
            region=(57, 3, 60, 61),
            window=(3, 9),
        ),
        small={"ball_x": 99, "ball_y": 101},
        agent={"player_x": 72},
        misc={"blocks_hit_count": 77, **{f"block_bit_map_{i}": i for i in range(30)}},
        score={"score": 84},
    ),
    _atari(
        "Boxing",
        _boxing_act,
        sprite("own_boxer", Axis(61.5, 44, 34), Axis(12.3, 14, 32), _RING, window=(15, 5)),
        sprite("other_boxer", Axis(60.5, 44, 35), Axis(10.2, 14, 33), _RING, window=(15, 5)),
        agent={"player_x": 32, "player_y": 34},
        other={"enemy_x": 33, "enemy_y": 35},
        score={"enemy_score": 19, "clock": 17, "player_score": 18},
    ),
)

# -- our own Pong ---------------------------------------------------------------------------------

_BYTE = {name: index for index, name in enumerate(STATE)}
_COURT = court()


def _bytes(*names: str) -> dict[str, int]:
    return {name: _BYTE[name] for name in names}


def _synthetic_act(obs: Array, ram: Array, rng: np.random.Generator) -> Array:
    """Follow the ball's row with the paddle's middle; actions 1 up, 2 down."""
    reach = (_COURT.paddle_height - _COURT.ball) // 2
    aim = reach + rng.integers(-reach, reach + 1, len(ram))
    away = _byte(ram, _BYTE["own_row"]) + aim - _byte(ram, _BYTE["ball_row"])
    follow = _towards(away, 1, 1, 2, 0)
    return np.where(ram[:, _BYTE["ball_visible"]] > 0, follow, rng.integers(0, 3, len(ram)))


def _synthetic_ball(ram: Ram) -> tuple[Floats, Bools]:
    """Centre of the ball, visible while all of it is between the paddles."""
    upper_left = ram[:, [_BYTE["ball_row"], _BYTE["ball_column"]]].astype(np.float64)
    first, behind = _COURT.other_column + _COURT.paddle_width, _COURT.own_column
    inside = (upper_left[:, 1] >= first) & (upper_left[:, 1] + _COURT.ball <= behind)
    return upper_left + (_COURT.ball - 1) / 2, (ram[:, _BYTE["ball_visible"]] > 0) & inside


def _synthetic_paddle(name: str, byte: str, left: int) -> SceneObject:
    middle = left + (_COURT.paddle_width - 1) / 2

    def locate(ram: Ram) -> tuple[Floats, Bools]:
        rows = ram[:, _BYTE[byte]] + (_COURT.paddle_height - 1) / 2
        return np.stack([rows, np.full(len(ram), middle)], -1), np.ones(len(ram), np.bool_)

    region = (0, left, _COURT.size, left + _COURT.paddle_width)
    return SceneObject(name, region, locate, window=(_COURT.paddle_height | 1, 3))


_SYNTHETIC = Game(
    "synthetic_pong",
    EnvSettings(id="reverie/Pong-v0", ram=True),
    _variables(
        small=_bytes("ball_row", "ball_column"),
        agent=_bytes("own_row"),
        other=_bytes("other_row"),
        misc=_bytes("ball_velocity_row", "ball_velocity_column", "ball_visible"),
    ),
    (
        SceneObject(
            "ball",
            (0, _COURT.other_column + _COURT.paddle_width, _COURT.size, _COURT.own_column),
            _synthetic_ball,
        ),
        _synthetic_paddle("own_paddle", "own_row", _COURT.own_column),
        _synthetic_paddle("other_paddle", "other_row", _COURT.other_column),
    ),
    _synthetic_act,
)


def _with_dials(name: str, **dials: float) -> Game:
    """Our Pong with some dials turned up; the state names what each of them shows."""
    ids = _bytes(*(f"{dial}_id" for dial in dials))
    return replace(
        _SYNTHETIC,
        name=f"synthetic_pong_{name}",
        env=EnvSettings(id="reverie/Pong-v0", ram=True, kwargs=dials),
        variables={**_SYNTHETIC.variables, **_variables(misc=ids)},
    )


_OTHERS = (
    Game("car_racing", EnvSettings(id="CarRacing-v3"), act=_car_racing_act),
    _SYNTHETIC,
    _with_dials("texture", texture=0.6),
    _with_dials("nuisance", texture=0.6, noise=8.0),
)
GAMES: dict[str, Game] = {game.name: game for game in (*_ATARI, *_OTHERS)}
"""Every game of the study, by name."""


def find_game(name: str, study: str) -> Game:
    """The game of that name, for a study that is named in the message.

    Raises:
        ConfigError: there is none; the known ones are listed.
    """
    if name not in GAMES:
        known = [*GAMES, *(MINATAR_GAMES if study == "fidelity" else ())]
        near = difflib.get_close_matches(name, known, n=1)
        raise ConfigError(
            f"bench {study}: expected a game out of {', '.join(known)}; got {name}"
            + (f"; did you mean {near[0]}?" if near else "")
        )
    return GAMES[name]
