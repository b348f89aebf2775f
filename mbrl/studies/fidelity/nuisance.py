"""What a code should not hold: a texture that never changes, and noise that nothing can foresee.

A code that serves prediction has a use for the ball, none for wallpaper. In games of ours that have
such dials, the memory names the episode's texture and each frame's noise pattern; linear
classifiers and small networks on z, on h and on both try to read them, trained as long as those
that read the ball. A decoder whose likelihood explains texture and noise from neighbouring pixels
leaves the code at chance; whether it then still holds the ball is told by the other probes. Noise
of a few fixed patterns is the harder half: which pattern a frame has tells all its pixels at once,
so a code that names it earns more than it costs.

Accuracy is balanced, the mean over classes of how many of each are recognised: a reader that always
says the same gets exactly one in so many classes, however often each occurs. All rows of an episode
share its texture, so there are as many textures to recognise as episodes, not as rows; how much the
best of several readers may get by luck is told by giving the episodes each other's textures.

Source: the measure is our own; the classifiers are those of `probes` and `regressions`.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mbrl.studies.fidelity.probes import EPOCHS, Labels, Split, Targets, classify
from mbrl.studies.fidelity.regressions import NETWORK_EPOCHS, network_classify

if TYPE_CHECKING:
    from mbrl.studies.fidelity.games import Game

SHUFFLES = 400
"""How often labels are dealt anew to find out what luck earns."""
LUCKY = 97.5
"""The percentile of those that is called luck."""
NUISANCES = ("texture_id", "noise_id")
"""Variables that are nuisances, by name, in any game that has them."""


def nuisance_names(game: "Game") -> tuple[str, ...]:
    """The game's nuisance variables."""
    return tuple(name for name in NUISANCES if name in game.variables)


def balanced_accuracy(labels: Labels, guesses: Labels) -> float:
    """Mean over the classes among labels (M,) of the share of its rows with the right guess (M,).

    1 over the number of classes for any guess that does not depend on the row.
    """
    classes, of = np.unique(labels, return_inverse=True)
    right = np.bincount(of[labels == guesses], minlength=len(classes))
    return float((right / np.bincount(of)).mean())


def luck(
    labels: Labels,
    readers: Sequence[Labels],
    episodes: NDArray[np.int64],
    rng: np.random.Generator,
) -> float:
    """What the best reader's balanced accuracy would be by luck, at most: the 97.5th percentile.

    Args:
        labels: (M,) what is asked for.
        readers: (M,) what each of them says.
        episodes: (M,) which episode each row is of. Where a label is the same all through every
            episode, episodes are given each other's labels; otherwise rows are.
        rng: deals.
    """
    _, first, of = np.unique(episodes, return_index=True, return_inverse=True)
    whole = labels[first]
    if not np.array_equal(whole[of], labels):
        whole, of = labels, np.arange(len(labels))
    best = []
    for _ in range(SHUFFLES):
        dealt = rng.permutation(whole)[of]
        best.append(max(balanced_accuracy(dealt, guesses) for guesses in readers))
    return float(np.percentile(best, LUCKY))


def nuisance_report(
    features: Mapping[str, Split],
    targets: Targets,
    episodes: NDArray[np.int64],
    rng: np.random.Generator,
    *,
    epochs: int = EPOCHS,
) -> dict[str, dict[str, float]]:
    """How well nuisances are read out of each kind of features.

    Args:
        features: kinds of features of the same rows, such as `z`, `h` and `zh`.
        targets: nuisance variables; those that never vary in the training rows are left out.
        episodes: (M,) which episode each test row is of.
        rng: shuffles the batches.
        epochs: upper limit of each linear classifier's training, and of the networks', if it is
            below `NETWORK_EPOCHS`.

    Returns:
        For each variable, balanced accuracies in [0, 1] on held-out rows: of the linear classifier
        on each kind of features, by its name; of the network, `KIND_network`; `chance`, of any
        guess that does not look; `luck`, of the best of all readers. And `values`, how many there
        are to tell apart, and `episodes`, in how many episodes.
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
