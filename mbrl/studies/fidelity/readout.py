"""All that is read out of one model's frozen code: features and labels gathered, readers applied.

`probes` knows arrays only; this module knows which rows they are made of. Features are z (the
posterior code), h (the state before the frame) and both. Everything is fitted on training frames,
of which the last eighth chooses epochs and penalties, and scored on held-out episodes, without
frames that the fit has seen.

*Nuisances* are what a code should not hold: a texture that never changes, and noise that nothing
can foresee. In games of ours that have such dials, the memory names the episode's texture and each
frame's noise pattern. A decoder whose likelihood explains both from neighbouring pixels leaves the
code at chance. Noise of a few fixed patterns is the harder half: a code that names the pattern
tells all its pixels at once, and saves more than it costs.

Their accuracy is balanced, the mean over classes of how many of each are recognised: a reader that
always says the same gets one in so many classes. All rows of an episode share its texture, so there
are as many textures to recognise as episodes; how much the best of several readers may get by luck
is measured by giving the episodes each other's textures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mbrl.studies.fidelity.follow import Followed, follow, rng_of
from mbrl.studies.fidelity.frames import Frames
from mbrl.studies.fidelity.games import Game
from mbrl.studies.fidelity.objects import distance, median
from mbrl.studies.fidelity.probes import (
    EPOCHS,
    NETWORK_EPOCHS,
    Labels,
    Split,
    Targets,
    classification_report,
    classify,
    informative,
    majority,
    network_classify,
    not_seen_in,
    r2,
    ridge,
    small_network,
    with_means,
)
from mbrl.world_model.model import WorldModel

KINDS = ("z", "h", "zh")  # the code, the state before the frame, and both
AHEAD = (0, 1, 5, 15)  # steps after h_t; at 0, the frame it has not seen yet
VALIDATION = 1 / 8
SHUFFLES = 400  # how often labels are shuffled to find out what luck gives
LUCKY = 97.5  # the percentile of those that is called luck
NUISANCES = ("texture_id", "noise_id")  # variables, in any game that has them


@dataclass(frozen=True)
class Reading:
    """Rows to fit on, to choose with and to score, with the frames they point into."""

    model: WorldModel
    train_frames: Frames
    test_frames: Frames
    train: Followed
    validation: Followed
    test: Followed

    def features(self, kind: str) -> Split:
        """`z`, `h` or both, `zh`, of all rows."""
        return Split(
            *(self._vectors(part, kind) for part in (self.train, self.validation, self.test))
        )

    def _vectors(self, part: Followed, kind: str) -> NDArray[np.float32]:
        code, state = self.model.vectors(part.latent.to(self.model.device))
        chosen = {"z": [code], "h": [state], "zh": [code, state]}[kind]
        return torch.cat(chosen, -1).cpu().numpy()

    def memory(self, ahead: int = 0) -> tuple[NDArray[np.uint8], ...]:
        """The console's memory that many steps after each row: train, validation, test."""
        train, test = self.train_frames.memory, self.test_frames.memory
        parts = ((train, self.train), (train, self.validation), (test, self.test))
        return tuple(memory[part.rows + ahead] for memory, part in parts)

    def targets(self, game: Game, names: tuple[str, ...], ahead: int = 0) -> Targets:
        """Variables by name, that many steps after each row."""
        bytes_ = [game.variables[name].index for name in names]
        return Targets(names, *(part[:, bytes_] for part in self.memory(ahead)))


def read(
    model: WorldModel, train: Frames, held_out: Frames, seed: int, fitted: int, scored: int
) -> tuple[Reading, dict[str, float]]:
    """Follow `fitted` training rows, validation included, and `scored` rows of other episodes.

    The rows without held-out copies of training rows, and how many there are of each kind; a
    ValueError if there are none of one.
    """
    known = follow(model, train, fitted, seed, "probes/train", ahead=max(AHEAD))
    test = follow(model, held_out, scored, seed, "probes/test", ahead=max(AHEAD))
    late = known.rows >= (1 - VALIDATION) * len(train.obs)
    new = not_seen_in(
        np.asarray(train.obs[known.rows], np.uint8), np.asarray(held_out.obs[test.rows], np.uint8)
    )
    parts = {
        "train": known.take(np.flatnonzero(~late)),
        "validation": known.take(np.flatnonzero(late)),
        "test": test.take(np.flatnonzero(new)),
    }
    counts = {name: float(len(part.rows)) for name, part in parts.items()}
    empty = [name for name, count in counts.items() if not count]
    if empty:
        raise ValueError(
            f"probes: expected rows to fit, to choose and to score, got none for {empty}; "
            f"collect more frames"
        )
    return Reading(model, train, held_out, **parts), {
        **counts,
        "copies_dropped": float((~new).sum()),
    }


def read_variables(game: Game, train: Frames) -> tuple[str, ...]:
    """Which variables are probed: by the entropy of their labels in all training frames.

    So the list is the same for every arm and seed of a game, and means over it compare.
    """
    names = tuple(name for name in game.variables if name not in NUISANCES)
    return informative(names, train.memory[:, [game.variables[name].index for name in names]])


def _r2_by_name(targets: Targets, guess: NDArray[np.float64]) -> dict[str, float]:
    scores = r2(targets.test.astype(np.float64), guess)
    return dict(zip(targets.names, map(float, scores), strict=True))


def probe_report(
    game: Game, reading: Reading, seed: int, *, epochs: int = EPOCHS
) -> dict[str, dict[str, dict[str, float]]]:
    """The AtariARI classifiers and the regressions, for z, h, both, and a blind reader.

    `z`, `h`, `zh`: what `classification_report` has, `ridge_r2` and `network_r2`, of the variables
    in `read_variables`; `majority`: the former for the guess of the commonest training label.
    Empty if there are no variables.
    """
    names = read_variables(game, reading.train_frames)
    if not names:
        return {}
    targets, categories = reading.targets(game, names), game.categories
    rows = len(targets.test)
    blind = np.stack([majority(column.astype(np.int64), rows) for column in targets.train.T], 1)
    report = {"majority": classification_report(targets, blind, categories)}
    for kind in KINDS:
        split = reading.features(kind)
        rng = rng_of(seed, f"probes/{kind}")
        guesses = classify(split, targets, rng, epochs=epochs)
        linear, network = ridge(split, targets), small_network(split, targets, rng)
        report[kind] = {
            **classification_report(targets, guesses, categories),
            "ridge_r2": with_means(_r2_by_name(targets, linear), categories),
            "network_r2": with_means(_r2_by_name(targets, network), categories),
        }
    return report


def position_report(game: Game, reading: Reading) -> dict[str, dict[str, dict[str, float]]]:
    """A ridge regression of every object's place, on rows where the memory says it is visible.

    For z, h and zh, by object: `row_r2`, `column_r2` and `px`, the median distance in pixels.
    """
    report: dict[str, dict[str, dict[str, float]]] = {kind: {} for kind in KINDS}
    memories, splits = reading.memory(), {kind: reading.features(kind) for kind in KINDS}
    for target in game.objects:
        places, visible = zip(*(target.locate(memory) for memory in memories), strict=True)
        if min(int(seen.sum()) for seen in visible) < 2:
            continue
        there = (place[seen] for place, seen in zip(places, visible, strict=True))
        wanted = Targets(("row_r2", "column_r2"), *there)
        for kind, split in splits.items():
            shown = Split(*(part[seen] for part, seen in zip(split, visible, strict=True)))
            guess = ridge(shown, wanted)
            px = median(distance(guess, np.asarray(wanted.test, np.float64)))
            report[kind][target.name] = {**_r2_by_name(wanted, guess), "px": px}
    return report


def ahead_report(game: Game, reading: Reading) -> dict[str, dict[str, float]]:
    """What h_t knows of the state at t + k: ridge R2 by variable and `mean`, for each k as string.

    h_t has seen rows before t only, so k = 0 is already a prediction by one step. The actions in
    between are not given: what depends on them cannot be known.
    """
    usable = read_variables(game, reading.train_frames)
    report = {}
    for ahead in AHEAD if usable else ():
        targets = reading.targets(game, usable, ahead)
        scores = _r2_by_name(targets, ridge(reading.features("h"), targets))
        report[str(ahead)] = {**scores, "mean": float(np.mean(list(scores.values())))}
    return report


# -- nuisances ------------------------------------------------------------------------------------


def balanced_accuracy(labels: Labels, guesses: Labels) -> float:
    """Mean over the classes among labels (M,) of how many of each are guessed rightly (M,)."""
    classes, of = np.unique(labels, return_inverse=True)
    right = np.bincount(of[labels == guesses], minlength=len(classes))
    return float((right / np.bincount(of)).mean())


def luck(
    labels: Labels, readers: Sequence[Labels], episodes: NDArray[np.int64], rng: np.random.Generator
) -> float:
    """What the best reader's balanced accuracy would be by luck, at most: the 97.5th percentile.

    From labels (M,), what each reader says (M,), and which episode each row is of (M,). Where a
    label is the same all through every episode, `rng` shuffles episodes, otherwise rows.
    """
    _, first, of = np.unique(episodes, return_index=True, return_inverse=True)
    whole = labels[first]
    if not np.array_equal(whole[of], labels):
        whole, of = labels, np.arange(len(labels))
    best = []
    for _ in range(SHUFFLES):
        shuffled = rng.permutation(whole)[of]
        best.append(max(balanced_accuracy(shuffled, guesses) for guesses in readers))
    return float(np.percentile(best, LUCKY))


def nuisance_report(
    features: Mapping[str, Split],
    targets: Targets,
    episodes: NDArray[np.int64],
    rng: np.random.Generator,
    *,
    epochs: int = EPOCHS,
) -> dict[str, dict[str, float]]:
    """How well nuisances are read out of each kind of features of the same rows.

    `episodes` (M,) says which episode each test row is of.

    Returns:
        For each variable, balanced accuracies in [0, 1] on held-out rows: of the linear classifier
        on each kind of features, by its name; of the network, `KIND_network`; `chance`, of any
        guess that does not look; `luck`, of the best of all readers. And `values`, how many there
        are to tell apart, and `episodes`, in how many episodes.
    """
    guesses = {}
    for kind, split in features.items():
        guesses[kind] = classify(split, targets, rng, epochs=epochs)
        fewer = min(epochs, NETWORK_EPOCHS)
        guesses[f"{kind}_network"] = network_classify(split, targets, rng, epochs=fewer)
    report = {}
    for i, name in enumerate(targets.names):
        labels = targets.test[:, i].astype(np.int64)
        found = {kind: guess[:, i] for kind, guess in guesses.items()}
        values = len(np.unique(labels))
        report[name] = {
            **{kind: balanced_accuracy(labels, guess) for kind, guess in found.items()},
            "chance": 1 / values,
            "luck": luck(labels, list(found.values()), episodes, rng),
            "values": float(values),
            "episodes": float(len(np.unique(episodes))),
        }
    return report


def nuisances(
    game: Game, reading: Reading, seed: int, *, epochs: int = EPOCHS
) -> dict[str, dict[str, float]]:
    """`nuisance_report` of the game's nuisance variables that vary in the training rows."""
    train = reading.memory()[0]
    here = [name for name in NUISANCES if name in game.variables]
    names = tuple(one for one in here if len(np.unique(train[:, game.variables[one].index])) > 1)
    if not names:
        return {}
    features = {kind: reading.features(kind) for kind in KINDS}
    episodes = reading.test_frames.is_first.cumsum()[reading.test.rows]
    targets, rng = reading.targets(game, names), rng_of(seed, "nuisance")
    return nuisance_report(features, targets, episodes, rng, epochs=epochs)
