"""All that is read out of one model's frozen code: features and labels gathered, probes applied.

`probes` and `regressions` know arrays only; this module knows which rows they are made of. Features
are z (the posterior code), h (the state before the frame) and both. Everything is fitted on
training frames, of which the last eighth chooses epochs and penalties, and scored on held-out
episodes, without frames that the fit has seen.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mbrl.studies.fidelity.follow import Followed, follow, rng_of
from mbrl.studies.fidelity.nuisance import nuisance_names, nuisance_report
from mbrl.studies.fidelity.objects import distance, median
from mbrl.studies.fidelity.probes import (
    EPOCHS,
    Split,
    Targets,
    classification_report,
    classify,
    informative,
    majority,
    means,
    not_seen_in,
)
from mbrl.studies.fidelity.regressions import r2, ridge, small_network
from mbrl.world_model.model import WorldModel

if TYPE_CHECKING:
    from mbrl.studies.fidelity.frames import Frames
    from mbrl.studies.fidelity.games import Game

AHEAD = (0, 1, 5, 15)
"""How many steps after h_t its future is asked for; at 0, the frame it has not seen yet."""
VALIDATION = 1 / 8


@dataclass(frozen=True)
class Reading:
    """Rows to fit on, to choose with and to score, with the frames they point into."""

    train_frames: "Frames"
    test_frames: "Frames"
    train: Followed
    validation: Followed
    test: Followed

    def features(self, kind: str) -> Split:
        """`z`, `h` or `zh` of all rows."""

        def of(part: Followed) -> NDArray[np.float32]:
            latent = part.latent
            chosen = {"z": latent.code, "h": latent.hidden, "zh": latent.features}[kind]
            return chosen.numpy()

        return Split(of(self.train), of(self.validation), of(self.test))

    def memory(self, ahead: int = 0) -> tuple[NDArray[np.uint8], ...]:
        """The console's memory that many steps after each row: train, validation, test.

        Raises:
            ValueError: the frames have none.
        """
        if self.train_frames.ram is None or self.test_frames.ram is None:
            raise ValueError("ram: expected the console's memory with every frame")
        return (
            self.train_frames.ram[self.train.rows + ahead],
            self.train_frames.ram[self.validation.rows + ahead],
            self.test_frames.ram[self.test.rows + ahead],
        )

    def targets(self, game: "Game", names: tuple[str, ...], ahead: int = 0) -> Targets:
        """Variables by name, that many steps after each row."""
        bytes_ = [game.variables[name].index for name in names]
        return Targets(names, *(part[:, bytes_] for part in self.memory(ahead)))


def read(
    model: WorldModel, train: "Frames", held_out: "Frames", seed: int, *, fitted: int, scored: int
) -> tuple[Reading, dict[str, float]]:
    """Follow the rows of a readout.

    Args:
        model: in evaluation mode.
        train: training frames.
        held_out: frames of other episodes.
        seed: of the measurement.
        fitted: training rows, validation included.
        scored: held-out rows, before those are dropped that are copies of training rows.

    Returns:
        The rows, and how many there are of each kind.
    """
    known = follow(model, train, fitted, seed, "probes/train", ahead=max(AHEAD))
    test = follow(model, held_out, scored, seed, "probes/test", ahead=max(AHEAD))
    late = known.rows >= (1 - VALIDATION) * len(train.obs)
    new = not_seen_in(
        np.asarray(train.obs[known.rows], np.uint8), np.asarray(held_out.obs[test.rows], np.uint8)
    )
    reading = Reading(
        train,
        held_out,
        known.take(np.flatnonzero(~late)),
        known.take(np.flatnonzero(late)),
        test.take(np.flatnonzero(new)),
    )
    counts = {
        "train": len(reading.train.rows),
        "validation": len(reading.validation.rows),
        "test": len(reading.test.rows),
        "copies_dropped": int((~new).sum()),
    }
    empty = [name for name in ("train", "validation", "test") if counts[name] == 0]
    if empty:
        raise ValueError(
            f"probes: expected rows to fit, to choose and to score, got none for {empty}; "
            f"collect more frames"
        )
    return reading, {name: float(value) for name, value in counts.items()}


def read_variables(game: "Game", train: "Frames") -> tuple[str, ...]:
    """Which variables are probed: by the entropy of their labels in all training frames.

    So the list is the same for every arm and seed of a game, and means over it compare.

    Raises:
        ValueError: the frames have no memory.
    """
    if train.ram is None:
        raise ValueError("ram: expected the console's memory with every frame")
    names = tuple(name for name in game.variables if name not in nuisance_names(game))
    labels = train.ram[:, [game.variables[name].index for name in names]]
    return informative(names, labels)


def probe_report(
    game: "Game", reading: Reading, seed: int, *, epochs: int = EPOCHS
) -> dict[str, dict[str, dict[str, float]]]:
    """The AtariARI classifiers and the regressions, for z, h, both, and a blind reader.

    Returns:
        `z`, `h`, `zh`: `f1`, `macro_f1`, `accuracy` (see `classification_report`), `ridge_r2` and
        `network_r2`, each by variable with means by category; `majority`: the first three for the
        guess of the commonest training label. Of the variables in `read_variables`; an empty report
        if there are none.
    """
    names = read_variables(game, reading.train_frames)
    if not names:
        return {}
    targets = reading.targets(game, names)
    categories = {name: game.variables[name].category for name in names}
    rows = len(targets.test)
    blind = np.stack([majority(column.astype(np.int64), rows) for column in targets.train.T], 1)
    report = {"majority": classification_report(targets, blind, categories)}
    for kind in ("z", "h", "zh"):
        split = reading.features(kind)
        rng = rng_of(seed, f"probes/{kind}")
        guesses = classify(split, targets, rng, epochs=epochs)
        report[kind] = classification_report(targets, guesses, categories)
        for name, guess in (
            ("ridge_r2", ridge(split, targets)),
            ("network_r2", small_network(split, targets, rng)),
        ):
            scores = r2(targets.test.astype(np.float64), guess)
            by_name = dict(zip(targets.names, map(float, scores), strict=True))
            report[kind][name] = {**by_name, **means(by_name, categories)}
    return report


def position_report(game: "Game", reading: Reading) -> dict[str, dict[str, dict[str, float]]]:
    """A ridge regression of every object's place, on rows where the memory says it is visible.

    Returns:
        For z, h and zh, by object: `row_r2`, `column_r2` and `px`, the median distance in pixels.
    """
    report: dict[str, dict[str, dict[str, float]]] = {"z": {}, "h": {}, "zh": {}}
    for kind, objects in report.items():
        split = reading.features(kind)
        for target in game.objects:
            places, visible = zip(*(target.locate(part) for part in reading.memory()), strict=True)
            if min(int(seen.sum()) for seen in visible) < 2:
                continue
            parts = (split.train, split.validation, split.test)
            shown = Split(*(part[seen] for part, seen in zip(parts, visible, strict=True)))
            wanted = Targets(
                ("row", "column"),
                *(place[seen] for place, seen in zip(places, visible, strict=True)),
            )
            guess = ridge(shown, wanted)
            row, column = r2(np.asarray(wanted.test, np.float64), guess)
            objects[target.name] = {
                "row_r2": float(row),
                "column_r2": float(column),
                "px": median(distance(guess, np.asarray(wanted.test, np.float64))),
            }
    return report


def ahead_report(game: "Game", reading: Reading) -> dict[str, dict[str, float]]:
    """What h_t knows of the state at t + k: ridge R2 by variable and `mean`, for each k as string.

    h_t has seen rows before t only, so k = 0 is already a prediction by one step. The actions in
    between are not given: what depends on them cannot be known.
    """
    usable = read_variables(game, reading.train_frames)
    if not usable:
        return {}
    report = {}
    for ahead in AHEAD:
        targets = reading.targets(game, usable, ahead)
        scores = r2(targets.test.astype(np.float64), ridge(reading.features("h"), targets))
        by_name = dict(zip(usable, map(float, scores), strict=True))
        report[str(ahead)] = {**by_name, "mean": float(scores.mean())}
    return report


def nuisances(
    game: "Game", reading: Reading, seed: int, *, epochs: int = EPOCHS
) -> dict[str, dict[str, float]]:
    """`nuisance_report` of the game's nuisance variables; empty if it has none."""
    names = nuisance_names(game)
    if not names:
        return {}
    features = {kind: reading.features(kind) for kind in ("z", "h", "zh")}
    targets = reading.targets(game, names)
    episodes = reading.test_frames.is_first.cumsum()[reading.test.rows]
    return nuisance_report(features, targets, episodes, rng_of(seed, "nuisance"), epochs=epochs)
