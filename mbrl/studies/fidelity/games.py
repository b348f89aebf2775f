"""The games of `mbrl bench fidelity`: what their memories mean, what is to be seen, who plays.

Each `Game` names an environment, its variables in the console's memory, its objects with their
places in the frame, and a simple scripted policy by which rallies happen. Nothing here steps an
environment or looks at a frame.

Variables are AtariARI's (Anand et al. 2019, "Unsupervised State Representation Learning in Atari",
arXiv:1906.08226, `ram_annotations.py` and its categories), all of them, for their probes to be
comparable. Maps from memory to pixels are our own, fitted to thousands of real frames of ale-py's
ROMs; `tests/test_fidelity_games.py` holds every object against real frames.
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
from mbrl.studies.fidelity.sprites import Axis, Bools, Floats, Ram, SceneObject, region_of, sprite

__all__ = ["GAMES", "Act", "Game", "RamVariable", "SceneObject", "find_game"]

Array = NDArray[Any]
Act = Callable[[Array, Array, np.random.Generator], Array]
"""Observations (E, ...), memories (E, R) and a stream to actions (E, ...)."""

SMALL = "small_object_localization"
AGENT = "agent_localization"
OTHER = "other_localization"
SCORE = "score_clock_lives_display"
MISC = "misc"


@dataclass(frozen=True)
class RamVariable:
    """One labelled byte.

    Attributes:
        index: of the byte in the memory.
        category: AtariARI's, such as "small_object_localization".
    """

    index: int
    category: str


@dataclass(frozen=True)
class Game:
    """One game of the study.

    Attributes:
        name: on the command line and in results.
        env: the environment, with the memory kept where there is one.
        variables: labelled bytes by name.
        objects: what a drawing should keep.
        act: the scripted policy; None for random actions only.
    """

    name: str
    env: EnvSettings
    variables: Mapping[str, RamVariable] = field(default_factory=dict)
    objects: tuple[SceneObject, ...] = ()
    act: Act | None = None


def _variables(category: str, **indices: int) -> dict[str, RamVariable]:
    return {name: RamVariable(index, category) for name, index in indices.items()}


def _column(ram: Array, index: int) -> NDArray[np.int64]:
    """One byte of all memories as numbers that can be subtracted."""
    return ram[:, index].astype(np.int64)


def _towards(away: NDArray[np.int64], slack: int, less: int, more: int, stay: int) -> Array:
    """The action that makes `away` smaller: `less` above the slack, `more` below it."""
    return np.where(away > slack, less, np.where(away < -slack, more, stay))


# -- Pong ------------------------------------------------------------------------------------------

_PONG_COURT = (34.0, 20.0, 194.0, 140.0)  # between the walls and the paddles


def _pong_act(obs: Array, ram: Array, rng: np.random.Generator) -> Array:
    """Follow the ball's row, aiming anywhere on the paddle; actions 2 up, 3 down."""
    away = _column(ram, 51) - _column(ram, 54) + 7 + rng.integers(-6, 7, len(ram))
    return _towards(away, 4, 2, 3, 0)


def _pong_paddle(name: str, index: int, offset: float, left: float) -> SceneObject:
    return SceneObject(
        name,
        region_of((34.0, left - 2.5, 194.0, left + 7.5)),
        sprite(
            Axis(offset, 16, index), Axis(left + 2, 4), (34.0, 0.0, 194.0, 160.0), _after_the_start
        ),
        window=(7, 3),
    )


def _after_the_start(ram: Ram) -> Bools:
    """Paddles are drawn once the game has moved the opponent's from 0."""
    return ram[:, 50] > 0


PONG = Game(
    name="pong",
    env=EnvSettings(id="ALE/Pong-v5", ram=True),
    variables={
        **_variables(AGENT, player_y=51, player_x=46),
        **_variables(OTHER, enemy_y=50, enemy_x=45),
        **_variables(SMALL, ball_x=49, ball_y=54),
        **_variables(SCORE, enemy_score=13, player_score=14),
    },
    objects=(
        SceneObject(
            "ball",
            region_of(_PONG_COURT),
            sprite(Axis(-12.0, 4, 54), Axis(-48.4, 2, 49), _PONG_COURT),
        ),
        _pong_paddle("own_paddle", 51, -5.0, 140.0),
        _pong_paddle("other_paddle", 50, -7.0, 16.0),
    ),
    act=_pong_act,
)

# -- Breakout --------------------------------------------------------------------------------------

_BELOW_BRICKS = (95.0, 8.0, 188.0, 152.0)


def _breakout_act(obs: Array, ram: Array, rng: np.random.Generator) -> Array:
    """Serve, then follow the ball's column; actions 1 fire, 2 right, 3 left."""
    away = _column(ram, 72) - _column(ram, 99) + 8 + rng.integers(-6, 7, len(ram))
    return np.where(ram[:, 101] == 0, 1, _towards(away, 4, 3, 2, 0))


BREAKOUT = Game(
    name="breakout",
    env=EnvSettings(id="ALE/Breakout-v5", ram=True),
    variables={
        **_variables(SMALL, ball_x=99, ball_y=101),
        **_variables(AGENT, player_x=72),
        **_variables(MISC, blocks_hit_count=77),
        **{f"block_bit_map_{i}": RamVariable(i, MISC) for i in range(30)},
        **_variables(SCORE, score=84),
    },
    objects=(
        SceneObject(
            "ball",
            region_of(_BELOW_BRICKS),
            sprite(Axis(10.6, 4, 101), Axis(-48.4, 2, 99), _BELOW_BRICKS),
        ),
        SceneObject(
            "paddle",
            (57, 3, 60, 61),
            sprite(Axis(191.0, 4), Axis(-39.0, 16, 72), (95.0, 8.0, 195.0, 152.0)),
            window=(3, 9),
        ),
    ),
    act=_breakout_act,
)

# -- Boxing ----------------------------------------------------------------------------------------

# the full action set: rows up, middle, down; columns left, middle, right
_COMPASS = np.array([[7, 2, 6], [4, 0, 3], [9, 5, 8]])
_RING = (30.0, 16.0, 187.0, 144.0)
_REACH = 26  # columns between two boxers at which a punch lands


def _boxing_act(obs: Array, ram: Array, rng: np.random.Generator) -> Array:
    """Go to a punch's distance from the other, and punch there."""
    down = _column(ram, 35) - _column(ram, 34)
    across = _column(ram, 33) - _column(ram, 32)
    across -= np.where(across > 0, _REACH, -_REACH)
    near = (np.abs(down) < 10) & (np.abs(across) < 8) & (rng.random(len(ram)) < 0.6)
    return np.where(near, 1, _COMPASS[_towards(down, 3, 2, 0, 1), _towards(across, 3, 2, 0, 1)])


def _boxer(name: str, row: Axis, column: Axis) -> SceneObject:
    return SceneObject(name, region_of(_RING), sprite(row, column, _RING), window=(15, 5))


BOXING = Game(
    name="boxing",
    env=EnvSettings(id="ALE/Boxing-v5", ram=True),
    variables={
        **_variables(AGENT, player_x=32, player_y=34),
        **_variables(OTHER, enemy_x=33, enemy_y=35),
        **_variables(SCORE, enemy_score=19, clock=17, player_score=18),
    },
    objects=(
        _boxer("own_boxer", Axis(61.5, 44, 34), Axis(12.3, 14, 32)),
        _boxer("other_boxer", Axis(60.5, 44, 35), Axis(10.2, 14, 33)),
    ),
    act=_boxing_act,
)

# -- Freeway ---------------------------------------------------------------------------------------


def _freeway_act(obs: Array, ram: Array, rng: np.random.Generator) -> Array:
    """Cross the road; action 1 is up."""
    return np.ones(len(ram), np.int64)


def _car(lane: int) -> SceneObject:
    """The car of one lane, 0 the topmost; lanes are 16 screen pixels high."""
    top = 27.0 + 16 * lane
    return SceneObject(
        f"car_{lane}",
        region_of((top - 3, 0.0, top + 13, 160.0)),
        sprite(Axis(top + 5, 10), Axis(161.0, 8, 108 + lane, -1), (0.0, 0.0, 210.0, 160.0)),
        window=(5, 5),
    )


FREEWAY = Game(
    name="freeway",
    env=EnvSettings(id="ALE/Freeway-v5", ram=True),
    variables={
        **_variables(AGENT, player_y=14),
        **_variables(SCORE, score=103),
        **{f"enemy_car_x_{i}": RamVariable(108 + i, OTHER) for i in range(10)},
    },
    objects=(
        SceneObject(
            "own_chicken",
            (7, 15, 62, 22),
            sprite(Axis(197.4, 8, 14, -1), Axis(47.0, 6), (15.0, 8.0, 200.0, 160.0)),
            window=(3, 5),
        ),
        *(_car(lane) for lane in range(10)),
    ),
    act=_freeway_act,
)

# -- Tennis ----------------------------------------------------------------------------------------

_TENNIS_COURT = (8.0, 0.0, 194.0, 160.0)
_DRAWN_BALL = 54  # AtariARI's ball_y (17) is its place on the ground, not the one drawn


def _tennis_act(obs: Array, ram: Array, rng: np.random.Generator) -> Array:
    """Follow the ball's column, swinging half of the time."""
    away = _column(ram, 26) - _column(ram, 16) + rng.integers(-4, 5, len(ram))
    swing = rng.random(len(ram)) < 0.5
    return np.where(swing, _towards(away, 3, 12, 11, 1), _towards(away, 3, 4, 3, 0))


def _tennis_ball_shown(ram: Ram) -> Bools:
    """Not parked in column 2 between points, and not white on white over the net or base line."""
    drawn = _column(ram, _DRAWN_BALL)
    on_white = ((drawn >= 74) & (drawn <= 97)) | ((drawn >= 9) & (drawn <= 13))
    return (ram[:, 16] != 2) & ~on_white


def _tennis_player(name: str, row: int, column: int, facing: int) -> SceneObject:
    return SceneObject(
        name,
        region_of(_TENNIS_COURT),
        sprite(
            Axis(176.0, 22, row, -1),
            Axis(9.4, 14, column, flip=(facing, -6.5)),
            _TENNIS_COURT,
        ),
        window=(9, 7),
    )


TENNIS = Game(
    name="tennis",
    env=EnvSettings(id="ALE/Tennis-v5", ram=True),
    variables={
        **_variables(OTHER, enemy_x=27, enemy_y=25),
        **_variables(SCORE, enemy_score=70, player_score=69),
        **_variables(SMALL, ball_x=16, ball_y=17),
        **_variables(AGENT, player_x=26, player_y=24),
    },
    objects=(
        SceneObject(
            "ball",
            region_of(_TENNIS_COURT),
            sprite(
                Axis(190.1, 4, _DRAWN_BALL, -1),
                Axis(-1.0, 2, 16),
                _TENNIS_COURT,
                _tennis_ball_shown,
            ),
        ),
        _tennis_player("own_player", 24, 26, 56),
        _tennis_player("other_player", 25, 27, 57),
    ),
    act=_tennis_act,
)

# -- CarRacing -------------------------------------------------------------------------------------


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


CAR_RACING = Game(name="car_racing", env=EnvSettings(id="CarRacing-v3"), act=_car_racing_act)

# -- our own Pong ----------------------------------------------------------------------------------

_BYTE = {name: index for index, name in enumerate(STATE)}
_COURT = court()


def _synthetic_act(obs: Array, ram: Array, rng: np.random.Generator) -> Array:
    """Follow the ball's row with the paddle's middle; actions 1 up, 2 down."""
    reach = (_COURT.paddle_height - _COURT.ball) // 2
    aim = reach + rng.integers(-reach, reach + 1, len(ram))
    away = _column(ram, _BYTE["own_row"]) + aim - _column(ram, _BYTE["ball_row"])
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


_SYNTHETIC_VARIABLES = {
    **_variables(SMALL, ball_row=_BYTE["ball_row"], ball_column=_BYTE["ball_column"]),
    **_variables(AGENT, own_row=_BYTE["own_row"]),
    **_variables(OTHER, other_row=_BYTE["other_row"]),
    **{
        name: RamVariable(_BYTE[name], MISC)
        for name in ("ball_velocity_row", "ball_velocity_column", "ball_visible")
    },
}
_SYNTHETIC_OBJECTS = (
    SceneObject(
        "ball",
        (0, _COURT.other_column + _COURT.paddle_width, _COURT.size, _COURT.own_column),
        _synthetic_ball,
    ),
    _synthetic_paddle("own_paddle", "own_row", _COURT.own_column),
    _synthetic_paddle("other_paddle", "other_row", _COURT.other_column),
)

SYNTHETIC_PONG = Game(
    name="synthetic_pong",
    env=EnvSettings(id="reverie/Pong-v0", ram=True),
    variables=_SYNTHETIC_VARIABLES,
    objects=_SYNTHETIC_OBJECTS,
    act=_synthetic_act,
)
SYNTHETIC_PONG_TEXTURE = replace(
    SYNTHETIC_PONG,
    name="synthetic_pong_texture",
    env=EnvSettings(id="reverie/Pong-v0", ram=True, kwargs={"texture": 0.6}),
    variables={**_SYNTHETIC_VARIABLES, "texture_id": RamVariable(_BYTE["texture_id"], MISC)},
)
SYNTHETIC_PONG_NUISANCE = replace(
    SYNTHETIC_PONG,
    name="synthetic_pong_nuisance",
    env=EnvSettings(id="reverie/Pong-v0", ram=True, kwargs={"texture": 0.6, "noise": 8.0}),
    variables={
        **_SYNTHETIC_VARIABLES,
        **{name: RamVariable(_BYTE[name], MISC) for name in ("texture_id", "noise_id")},
    },
)

_ATARI = (PONG, BREAKOUT, BOXING, FREEWAY, TENNIS)
_OTHERS = (CAR_RACING, SYNTHETIC_PONG, SYNTHETIC_PONG_TEXTURE, SYNTHETIC_PONG_NUISANCE)
GAMES: dict[str, Game] = {game.name: game for game in (*_ATARI, *_OTHERS)}
"""Every game of the study, by name."""


def find_game(name: str, study: str) -> Game:
    """The game of that name, for a study that is named in the message.

    Raises:
        ConfigError: there is none; the known ones are listed.
    """
    if name not in GAMES:
        near = difflib.get_close_matches(name, GAMES, n=1)
        raise ConfigError(
            f"bench {study}: expected a game out of {', '.join(GAMES)}; got {name}"
            + (f"; did you mean {near[0]}?" if near else "")
        )
    return GAMES[name]
