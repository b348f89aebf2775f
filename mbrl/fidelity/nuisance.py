"""What a code should not hold: a texture that never changes, and noise that nothing can foresee.

A code that serves prediction has a use for the ball, none for wallpaper. In games of ours that have
such dials, the memory names the episode's texture and each frame's noise pattern; linear
classifiers and small networks on z, on h and on both try to read them, trained as long as those
that read the ball, beside the guess that a blind reader would make. A decoder whose likelihood
explains texture and noise from neighbouring pixels leaves the code at chance; whether it then still
holds the ball is told by the other probes.

Source: the measure is our own; the classifiers are those of `probes` and `regressions`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from mbrl.fidelity.probes import EPOCHS, Split, Targets, accuracy, classify, majority
from mbrl.fidelity.regressions import NETWORK_EPOCHS, network_classify

if TYPE_CHECKING:
    from mbrl.fidelity.games import Game

NUISANCES = ("texture_id", "noise_id")
"""Variables that are nuisances, by name, in any game that has them."""


def nuisance_names(game: "Game") -> tuple[str, ...]:
    """The game's nuisance variables."""
    return tuple(name for name in NUISANCES if name in game.variables)


def nuisance_report(
    features: Mapping[str, Split],
    targets: Targets,
    rng: np.random.Generator,
    *,
    epochs: int = EPOCHS,
) -> dict[str, dict[str, float]]:
    """How well nuisances are read out of each kind of features.

    Args:
        features: kinds of features of the same rows, such as `z`, `h` and `zh`.
        targets: nuisance variables; those that never vary in the training rows are left out.
        rng: shuffles the batches.
        epochs: upper limit of each linear classifier's training, and of the networks', if it is
            below `NETWORK_EPOCHS`.

    Returns:
        For each variable, accuracies in [0, 1] on held-out rows: of the linear classifier on each
        kind of features, by its name; of the network, `KIND_network`; `chance`, of the commonest
        training label. And `values`, how many it takes.
    """
    varied = [i for i in range(len(targets.names)) if len(np.unique(targets.train[:, i])) > 1]
    targets = targets.pick(varied)
    if not targets.names:
        return {}
    guesses = {}
    for kind, split in features.items():
        guesses[kind] = classify(split, targets, rng, epochs=epochs)
        guesses[f"{kind}_network"] = network_classify(
            split, targets, rng, epochs=min(epochs, NETWORK_EPOCHS)
        )
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
