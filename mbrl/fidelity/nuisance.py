"""What a code should not hold: a texture that never changes, and noise that nothing can foresee.

A code that serves prediction has a use for the ball, none for wallpaper. In games of ours that have
such dials, the memory names the episode's texture and each frame's noise pattern; linear
classifiers on z, on h and on both try to read them, beside the guess that a blind reader would
make. A decoder whose likelihood explains texture and noise from neighbouring pixels leaves the code
at chance; whether it then still holds the ball is told by the other probes.

Source: the measure is our own; the classifiers are those of `probes`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from mbrl.fidelity.probes import Split, Targets, accuracy, classify, majority

if TYPE_CHECKING:
    from mbrl.fidelity.games import Game

NUISANCES = ("texture_id", "noise_id")
"""Variables that are nuisances, by name, in any game that has them."""


def nuisance_names(game: "Game") -> tuple[str, ...]:
    """The game's nuisance variables."""
    return tuple(name for name in NUISANCES if name in game.variables)


def nuisance_report(
    features: Mapping[str, Split], targets: Targets, rng: np.random.Generator, *, epochs: int = 30
) -> dict[str, dict[str, float]]:
    """How well nuisances are read out of each kind of features.

    Args:
        features: kinds of features of the same rows, such as `z`, `h` and `zh`.
        targets: nuisance variables; those that never vary in the training rows are left out.
        rng: shuffles the batches.
        epochs: upper limit of each classifier's training.

    Returns:
        For each variable: the accuracy in [0, 1] on held-out rows of the classifier on each kind of
        features; `chance`, of the commonest training label; `values`, how many it takes.
    """
    varied = [i for i in range(len(targets.names)) if len(np.unique(targets.train[:, i])) > 1]
    targets = targets.pick(varied)
    if not targets.names:
        return {}
    guesses = {
        kind: classify(split, targets, rng, epochs=epochs) for kind, split in features.items()
    }
    report = {}
    for i, name in enumerate(targets.names):
        labels = targets.test[:, i].astype(np.int64)
        blind = majority(targets.train[:, i].astype(np.int64), len(labels))
        report[name] = {
            **{kind: accuracy(labels, guess[:, i]) for kind, guess in guesses.items()},
            "chance": accuracy(labels, blind),
            "values": float(len(np.unique(targets.train[:, i]))),
        }
    return report
