"""What linear eyes can read out of a frozen code: the AtariARI probes.

Features of real frames and the bytes of the console's memory go in, scores per variable come out.
Fitting uses features of *training* frames only; every score is on held-out episodes. The world
model itself is never touched: no gradient reaches it, and it is not even known here.

*Protocol* (Anand et al., arXiv:1906.08226, and its code, mila-iqia/atari-representation-learning):
one linear classifier over byte values per variable, Adam with learning rate 5e-4 and epsilon 1e-5,
batches of 64, at most 100 epochs; on validation accuracy, the rate is divided by 5 after 5 epochs
without a new best and the classifier keeps its best epoch after 15; variables whose labels have an
entropy below 0.6 nats are dropped, as are test frames that are also training frames; F1 is the mean
over classes weighted by how often each occurs. As in its later versions, the classifiers of all
variables are trained at once; they share nothing but the batches, so each ends where it would have
ended alone.

Where we differ: frames are 64 x 64 instead of 210 x 160, so that neighbouring values of a position
may look the same; `regressions` stand beside F1 for that reason. Values that never occur in
training are left out of the 256 classes, as no such classifier would ever guess them. There are
fewer training frames than their 35,000. The last version of their code weights F1 by *predicted*
frequency, because two arguments are swapped; here, as in its earlier versions, by true frequency.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Labels = NDArray[np.int64]

MIN_ENTROPY = 0.6
"""Nats; variables with less are dropped, as in AtariARI."""
LEARNING_RATE, EPSILON, BATCH, EPOCHS, PATIENCE = 5e-4, 1e-5, 64, 100, 15
PLATEAU, PLATEAU_FACTOR, SLOWEST = 5, 0.2, 1e-5


# -- scores ---------------------------------------------------------------------------------------


def accuracy(labels: Labels, guesses: Labels) -> float:
    """Share of guesses (M,) that equal the labels (M,)."""
    return float((labels == guesses).mean())


def f1_per_class(labels: Labels, guesses: Labels) -> tuple[NDArray[np.float64], Labels]:
    """F1 of every class that occurs among labels or guesses, and how often each is the label.

    F1 = 2 TP / (2 TP + FP + FN), which is 0 for a class never hit.
    """
    classes, flat = np.unique(np.concatenate([labels, guesses]), return_inverse=True)
    truth, guess = flat[: len(labels)], flat[len(labels) :]
    size = len(classes)
    support = np.bincount(truth, minlength=size)
    guessed = np.bincount(guess, minlength=size)
    hits = np.bincount(truth[truth == guess], minlength=size)
    return 2 * hits / (support + guessed), support


def weighted_f1(labels: Labels, guesses: Labels) -> float:
    """Mean F1 over classes, weighted by how often each is the label (scikit-learn's `weighted`)."""
    scores, support = f1_per_class(labels, guesses)
    return float((scores * support).sum() / support.sum())


def macro_f1(labels: Labels, guesses: Labels) -> float:
    """Plain mean of F1 over classes that occur among labels or guesses (scikit-learn's `macro`)."""
    return float(f1_per_class(labels, guesses)[0].mean())


def entropy(labels: NDArray[np.generic]) -> float:
    """Entropy of the empirical distribution of labels (N,), in nats."""
    share = np.unique(labels, return_counts=True)[1] / len(labels)
    return float(-(share * np.log(share)).sum())


def majority(train: Labels, rows: int) -> Labels:
    """The guesses of one who knows only the commonest training label: (rows,)."""
    values, counts = np.unique(train, return_counts=True)
    return np.full(rows, values[counts.argmax()])


# -- data -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """The rows of one kind of feature: for fitting, for choosing, for the score.

    Attributes:
        train, validation, test: (N, F) float32 features.
    """

    train: NDArray[np.float32]
    validation: NDArray[np.float32]
    test: NDArray[np.float32]


@dataclass(frozen=True)
class Targets:
    """What is to be read out at the same rows, (N, V) each, and what the columns are called."""

    names: tuple[str, ...]
    train: NDArray[np.generic]
    validation: NDArray[np.generic]
    test: NDArray[np.generic]

    def pick(self, columns: Sequence[int]) -> "Targets":
        """Some of the columns."""
        index = list(columns)
        return Targets(
            tuple(self.names[i] for i in index),
            self.train[:, index],
            self.validation[:, index],
            self.test[:, index],
        )


def informative(names: Sequence[str], labels: NDArray[np.generic]) -> tuple[str, ...]:
    """Names of columns of labels (N, V), without those of less entropy than `MIN_ENTROPY`."""
    columns = zip(names, labels.T, strict=True)
    return tuple(name for name, column in columns if entropy(column) >= MIN_ENTROPY)


def not_seen_in(train: NDArray[np.uint8], test: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which test frames (M, ...) are no copy of a training frame (N, ...): (M,)."""
    known = {frame.tobytes() for frame in train}
    return np.array([frame.tobytes() not in known for frame in test], bool)


# -- classifiers ----------------------------------------------------------------------------------


@dataclass
class _Course:
    """How the training of one variable's classifier is going."""

    classes: Labels
    best: float = -1.0
    rate: float = LEARNING_RATE
    since_best: int = 0
    since_drop: int = 0
    weight: Tensor = field(default_factory=lambda: torch.empty(0))

    def judge(self, score: float, weight: Tensor) -> bool:
        """Take in the validation accuracy after an epoch; whether to go on."""
        if score > self.best:
            self.best, self.weight = score, weight.clone()
            self.since_best = self.since_drop = 0
            return True
        self.since_best += 1
        self.since_drop += 1
        if self.since_drop > PLATEAU:
            self.rate, self.since_drop = max(self.rate * PLATEAU_FACTOR, SLOWEST), 0
        return self.since_best < PATIENCE


class _Columns:
    """The weights of several softmax classifiers side by side, and Adam on them.

    Softmax, cross-entropy and its gradient are written out: a linear layer needs no autograd, and a
    rate per column is what lets every classifier have its own course.
    """

    def __init__(self, courses: Sequence[_Course], weight: Tensor, first: Tensor, second: Tensor):
        """Start from a weight (F + 1, K), the bias in the last row, and Adam's two moments."""
        self.courses = list(courses)
        self.weight, self.first, self.second = weight, first, second
        self.sizes = [len(course.classes) for course in courses]

    def step(self, x: Tensor, labels: Tensor, count: int) -> None:
        """One Adam step on a batch (B, F + 1) with class indices (B, V); `count` starts at 1."""
        error = torch.cat([part.softmax(1) for part in (x @ self.weight).split(self.sizes, 1)], 1)
        at = labels + torch.tensor([0, *self.sizes[:-1]]).cumsum(0)
        error.scatter_add_(1, at, torch.full(at.shape, -1.0))
        gradient = x.T @ error / len(x)
        self.first.lerp_(gradient, 0.1)
        self.second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        scale = (self.second / (1 - 0.999**count)).sqrt_().add_(EPSILON)
        rates = torch.cat(
            [
                torch.full((size,), course.rate / (1 - 0.9**count))
                for size, course in zip(self.sizes, self.courses, strict=True)
            ]
        )
        self.weight -= self.first / scale * rates

    def guesses(self, x: Tensor) -> list[Tensor]:
        """The likeliest class index of each classifier for features (N, F + 1)."""
        return [part.argmax(1) for part in (x @ self.weight).split(self.sizes, 1)]

    def keep(self, which: Sequence[bool]) -> "_Columns":
        """Without the classifiers that are done."""
        columns = torch.cat(
            [torch.full((size,), bool(kept)) for size, kept in zip(self.sizes, which, strict=True)]
        )
        courses = [course for course, kept in zip(self.courses, which, strict=True) if kept]
        parts = (part[:, columns] for part in (self.weight, self.first, self.second))
        return _Columns(courses, *parts)


def classify(
    split: Split, targets: Targets, rng: np.random.Generator, *, epochs: int = EPOCHS
) -> Labels:
    """Fit the linear classifiers of all variables; their guesses for the test rows.

    Args:
        split: features; used as they are, as in AtariARI.
        targets: integer labels.
        rng: shuffles the batches.
        epochs: upper limit.

    Returns:
        (M, V) labels.
    """
    train, validation, test = (
        torch.cat([torch.as_tensor(part), torch.ones(len(part), 1)], 1)
        for part in (split.train, split.validation, split.test)
    )
    courses, indices = [], []
    for column in targets.train.T:
        classes, index = np.unique(column.astype(np.int64), return_inverse=True)
        courses.append(_Course(classes))
        indices.append(torch.as_tensor(index))
    wanted = [column.astype(np.int64) for column in targets.validation.T]
    labels = torch.stack(indices, 1)
    active = list(range(len(courses)))
    size = sum(len(course.classes) for course in courses)
    zeros = [torch.zeros(train.shape[1], size) for _ in range(3)]
    columns, count = _Columns(courses, *zeros), 0
    for _ in range(epochs):
        for rows in torch.as_tensor(rng.permutation(len(train))).split(BATCH):
            count += 1
            columns.step(train[rows], labels[rows][:, active], count)
        guesses = columns.guesses(validation)
        weights = columns.weight.split(columns.sizes, 1)
        going = [
            course.judge(accuracy(wanted[i], course.classes[guess.numpy()]), weight)
            for i, course, guess, weight in zip(
                active, columns.courses, guesses, weights, strict=True
            )
        ]
        if not any(going):
            break
        if not all(going):
            columns = columns.keep(going)
            active = [i for i, on in zip(active, going, strict=True) if on]
    return np.stack(
        [course.classes[(test @ course.weight).argmax(1).numpy()] for course in courses], 1
    )


# -- reports --------------------------------------------------------------------------------------


def classification_report(
    targets: Targets, guesses: Labels, categories: Mapping[str, str]
) -> dict[str, dict[str, float]]:
    """Scores of guesses (M, V) by variable and their means.

    Returns:
        For each of `f1` (weighted), `macro_f1` and `accuracy`: every variable by name, the mean
        over the variables of each category, `mean` over all variables (AtariARI's overall average)
        and `across_categories`, the mean of the categories' means.
    """
    report: dict[str, dict[str, float]] = {}
    kinds = {"f1": weighted_f1, "macro_f1": macro_f1, "accuracy": accuracy}
    for kind, score in kinds.items():
        by_name = {
            name: score(targets.test[:, i].astype(np.int64), guesses[:, i])
            for i, name in enumerate(targets.names)
        }
        report[kind] = {**by_name, **means(by_name, categories)}
    return report


def means(by_name: Mapping[str, float], categories: Mapping[str, str]) -> dict[str, float]:
    """Means of scores by category and over all; see `classification_report`."""
    members: dict[str, list[float]] = {}
    for name, value in by_name.items():
        members.setdefault(categories[name], []).append(value)
    averages = {category: float(np.mean(values)) for category, values in members.items()}
    nothing = float("nan")
    return {
        **averages,
        "mean": float(np.mean(list(by_name.values()))) if by_name else nothing,
        "across_categories": float(np.mean(list(averages.values()))) if averages else nothing,
    }
