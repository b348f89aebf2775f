"""What simple readers can read out of a frozen code: the AtariARI probes, and regressions.

Features of real frames and the bytes of the console's memory go in, guesses and scores per variable
come out. Readers are fitted on *training* frames, chosen on a validation part of them, and scored
on held-out episodes.

*Protocol* (Anand et al., arXiv:1906.08226, and its code, mila-iqia/atari-representation-learning):
one linear classifier over byte values per variable, Adam with learning rate 5e-4 and epsilon 1e-5,
batches of 64, at most 100 epochs; on validation accuracy, the rate is divided by 5 after 5 epochs
without a new best and the classifier keeps its best epoch after 15; variables whose labels have an
entropy below 0.6 nats are dropped, as are test frames that are also training frames; F1 is the mean
over classes weighted by how often each occurs.

Where we differ: frames are 64 x 64 instead of 210 x 160, so neighbouring values of a position may
look the same; a classifier punishes a miss by half a pixel as hard as one by thirty, so a ridge
regression and a small network stand beside it. Values that never occur in training are no classes.
There are fewer training frames than their 35,000. The last version of their code weights F1 by
*predicted* frequency, because two arguments are swapped; here, it is the true one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy, silu

from mbrl.studies.fidelity.games import Floats

Labels = NDArray[np.int64]

MIN_ENTROPY = 0.6  # nats; variables with less are dropped, as in AtariARI
LEARNING_RATE, EPSILON, BATCH, EPOCHS, PATIENCE = 5e-4, 1e-5, 64, 100, 15
PLATEAU, PLATEAU_FACTOR, SLOWEST = 5, 0.2, 1e-5
RIDGE = (0.1, 1.0, 10.0, 100.0, 1000.0)  # penalties, in units of the features' overall variance
NETWORK_EPOCHS, HIDDEN = 30, 128


# -- scores ---------------------------------------------------------------------------------------


def accuracy(labels: Labels, guesses: Labels) -> float:
    """Share of guesses (M,) that equal the labels (M,)."""
    return float((labels == guesses).mean())


def f1_per_class(labels: Labels, guesses: Labels) -> tuple[Floats, Labels]:
    """F1 of every class among labels or guesses, and how often each is the label."""
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


def r2(target: Floats, guess: Floats) -> Floats:
    """1 - squared error / variance, per column of (M, V); NaN where the target is constant."""
    error = np.square(target - guess).mean(0)
    spread = target.var(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        # a mean of equal numbers may be off in the last digit
        return np.where(spread > 1e-9, 1 - error / spread, np.nan)


def entropy(labels: NDArray[np.generic]) -> float:
    """Entropy of the empirical distribution of labels (N,), in nats."""
    share = np.unique(labels, return_counts=True)[1] / len(labels)
    return float(-(share * np.log(share)).sum())


def majority(train: Labels, rows: int) -> Labels:
    """The guesses of a reader that knows only the commonest training label: (rows,)."""
    values, counts = np.unique(train, return_counts=True)
    return np.full(rows, values[counts.argmax()])


# -- data -----------------------------------------------------------------------------------------


class Split(NamedTuple):
    """Features of one kind, (N, F) each: for fitting, for choosing, for the score."""

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


def informative(names: Sequence[str], labels: NDArray[np.generic]) -> tuple[str, ...]:
    """Names of columns of labels (N, V), without those of less entropy than `MIN_ENTROPY`."""
    columns = zip(names, labels.T, strict=True)
    return tuple(name for name, column in columns if entropy(column) >= MIN_ENTROPY)


def not_seen_in(train: NDArray[np.uint8], test: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which test frames (M, ...) are no copy of a training frame (N, ...): (M,)."""
    known = {frame.tobytes() for frame in train}
    return np.array([frame.tobytes() not in known for frame in test], bool)


# -- linear classifiers ---------------------------------------------------------------------------


@dataclass
class Course:
    """How the training of one variable's classifier is going."""

    classes: Labels  # its label values
    best: float = -1.0  # validation accuracy so far
    rate: float = LEARNING_RATE  # Adam's, now
    since_best: int = 0
    since_drop: int = 0
    weight: Tensor = field(default_factory=lambda: torch.empty(0))  # of the best epoch

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

    The gradient is written out, as a rate per column lets every classifier have its own course.
    """

    def __init__(self, courses: Sequence[Course], weight: Tensor, first: Tensor, second: Tensor):
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
        rates = self._spread([course.rate / (1 - 0.9**count) for course in self.courses])
        self.weight -= self.first / scale * rates

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """Of each classifier, (F + 1, classes)."""
        return self.weight.split(self.sizes, 1)

    def guesses(self, x: Tensor) -> list[Tensor]:
        """The most probable class index of each classifier for features (N, F + 1)."""
        return [part.argmax(1) for part in (x @ self.weight).split(self.sizes, 1)]

    def keep(self, which: Sequence[bool]) -> "_Columns":
        """Without the classifiers that are done."""
        columns = self._spread(which)
        courses = [course for course, kept in zip(self.courses, which, strict=True) if kept]
        parts = (part[:, columns] for part in (self.weight, self.first, self.second))
        return _Columns(courses, *parts)

    def _spread(self, values: Sequence[float] | Sequence[bool]) -> Tensor:
        """One value per classifier, repeated for each of its columns: (K,)."""
        parts = zip(self.sizes, values, strict=True)
        return torch.cat([torch.full((size,), value) for size, value in parts])


def classify(
    split: Split, targets: Targets, rng: np.random.Generator, *, epochs: int = EPOCHS
) -> Labels:
    """Fit the linear classifiers of all variables; labels (M, V) guessed for the test rows.

    Features are used as they are, as in AtariARI; `rng` shuffles the batches.
    """
    train, validation, test = (
        torch.cat([torch.as_tensor(part), torch.ones(len(part), 1)], 1) for part in split
    )
    known = [np.unique(y.astype(np.int64), return_inverse=True) for y in targets.train.T]
    courses = [Course(classes) for classes, _ in known]
    labels = torch.stack([torch.as_tensor(index) for _, index in known], 1)
    wanted = [column.astype(np.int64) for column in targets.validation.T]
    active = list(range(len(courses)))
    size = sum(len(course.classes) for course in courses)
    zeros = [torch.zeros(train.shape[1], size) for _ in range(3)]
    columns, count = _Columns(courses, *zeros), 0
    for _ in range(epochs):
        for rows in torch.as_tensor(rng.permutation(len(train))).split(BATCH):
            count += 1
            columns.step(train[rows], labels[rows][:, active], count)
        learnt = zip(columns.guesses(validation), columns.weights, strict=True)
        going = [
            course.judge(accuracy(wanted[i], course.classes[guess.numpy()]), weight)
            for i, course, (guess, weight) in zip(active, columns.courses, learnt, strict=True)
        ]
        if not any(going):
            break
        if not all(going):
            columns = columns.keep(going)
            active = [i for i, on in zip(active, going, strict=True) if on]
    guesses = [course.classes[(test @ course.weight).argmax(1).numpy()] for course in courses]
    return np.stack(guesses, 1)


# -- regressions and networks ---------------------------------------------------------------------


def _standard(split: Split) -> tuple[Floats, ...]:
    """The three parts, centred on the training rows and divided by one overall deviation.

    One for each feature would blow up a class of the code that is rare or never seen in training.
    """
    mean = split.train.mean(0, dtype=np.float64)
    scale = np.sqrt(np.square(split.train - mean).mean()) + 1e-6
    return tuple((part - mean) / scale for part in split)


def ridge(split: Split, targets: Targets) -> Floats:
    """Linear least squares: guesses (M, V) for the test rows, in the targets' units.

    The penalty is chosen per variable on the validation rows.
    """
    train, validation, test = _standard(split)
    mean = targets.train.mean(0, dtype=np.float64)
    values, basis = np.linalg.eigh(train.T @ train)
    projected = basis.T @ (train.T @ (targets.train - mean))
    best = np.full(len(targets.names), np.inf)
    weight = np.zeros_like(projected)
    for penalty in RIDGE:
        trial = basis @ (projected / (values.clip(min=0) + penalty)[:, None])
        error = np.square(validation @ trial + mean - targets.validation).sum(0)
        better = error < best
        best = np.where(better, error, best)
        weight[:, better] = trial[:, better]
    return test @ weight + mean


def small_network(
    split: Split, targets: Targets, rng: np.random.Generator, *, epochs: int = NETWORK_EPOCHS
) -> Floats:
    """The same with one hidden layer of SiLU units, the epoch chosen on the validation rows.

    What it reads better than `ridge` is in the code but not laid out linearly.
    """
    mean = targets.train.mean(0, dtype=np.float64)
    scale = targets.train.std(0, dtype=np.float64) + 1e-6
    wanted, check = (
        torch.as_tensor((part - mean) / scale, dtype=torch.float32)
        for part in (targets.train, targets.validation)
    )

    def loss(output: Tensor, label: Tensor) -> Tensor:
        return (output - label).square().mean()

    guess = _fit(split, wanted, check, wanted.shape[1], loss, rng, epochs)
    return guess.double().numpy() * scale + mean


def network_classify(
    split: Split, targets: Targets, rng: np.random.Generator, *, epochs: int = NETWORK_EPOCHS
) -> Labels:
    """The same network with a softmax over each variable's training values: labels (M, V)."""
    classes = [np.unique(column) for column in targets.train.T]
    sizes = [len(values) for values in classes]

    def index(part: NDArray[np.generic]) -> Tensor:
        # a value that training never had cannot be learnt: no part of the choice
        found = [
            np.where(np.isin(column, values), np.searchsorted(values, column), -100)
            for column, values in zip(part.T, classes, strict=True)
        ]
        return torch.as_tensor(np.stack(found, 1))

    def loss(output: Tensor, label: Tensor) -> Tensor:
        parts = zip(output.split(sizes, 1), label.T, strict=True)
        sums = [cross_entropy(part, column, reduction="sum") for part, column in parts]
        return torch.stack(sums).sum() / label.numel()

    wanted, check = index(targets.train), index(targets.validation)
    output = _fit(split, wanted, check, sum(sizes), loss, rng, epochs)
    parts = zip(output.split(sizes, 1), classes, strict=True)
    return np.stack([values[part.argmax(1).numpy()] for part, values in parts], 1).astype(np.int64)


@torch.enable_grad()  # measures run without gradients; a reader is fitted all the same
def _fit(
    split: Split,
    wanted: Tensor,
    check: Tensor,
    outputs: int,
    loss: Callable[[Tensor, Tensor], Tensor],
    rng: np.random.Generator,
    epochs: int,
) -> Tensor:
    """Fit the network; its outputs (M, outputs) for the test rows at the best validation epoch.

    Adam, learning rate 1e-3 falling to 0, batches of 128, weight decay 1e-4.
    """
    train, validation, test = (
        torch.as_tensor(part, dtype=torch.float32) for part in _standard(split)
    )
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    inner = torch.randn(train.shape[1], HIDDEN, generator=generator) / train.shape[1] ** 0.5
    outer = torch.randn(HIDDEN, outputs, generator=generator) / HIDDEN**0.5
    weights = [inner, torch.zeros(HIDDEN), outer, torch.zeros(outputs)]
    for weight in weights:
        weight.requires_grad_(True)
    optimizer = torch.optim.AdamW(weights, lr=1e-3, weight_decay=1e-4)
    steps = epochs * -(-len(train) // 128)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)

    def guess(x: Tensor) -> Tensor:
        return silu(x @ weights[0] + weights[1]) @ weights[2] + weights[3]

    lowest, chosen = float("inf"), torch.zeros(len(test), outputs)
    for _ in range(epochs):
        for rows in torch.as_tensor(rng.permutation(len(train))).split(128):
            error = loss(guess(train[rows]), wanted[rows])
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            found = float(loss(guess(validation), check))
            if found < lowest:
                lowest, chosen = found, guess(test)
    return chosen


# -- reports --------------------------------------------------------------------------------------


def classification_report(
    targets: Targets, guesses: Labels, categories: Mapping[str, str]
) -> dict[str, dict[str, float]]:
    """`f1` (weighted), `macro_f1`, `accuracy` of guesses (M, V), each by variable `with_means`."""
    report: dict[str, dict[str, float]] = {}
    for kind, score in (("f1", weighted_f1), ("macro_f1", macro_f1), ("accuracy", accuracy)):
        columns = zip(targets.test.T.astype(np.int64), guesses.T, strict=True)
        scores = [score(labels, guess) for labels, guess in columns]
        report[kind] = with_means(dict(zip(targets.names, scores, strict=True)), categories)
    return report


def with_means(by_name: Mapping[str, float], categories: Mapping[str, str]) -> dict[str, float]:
    """Scores by variable, the mean over each category's, and two means of all.

    Those are `mean` over the variables (AtariARI's overall average) and `across_categories`.
    """
    members: dict[str, list[float]] = {}
    for name, value in by_name.items():
        members.setdefault(categories[name], []).append(value)
    means = {category: float(np.mean(values)) for category, values in members.items()}
    across = float(np.mean(list(means.values())))
    overall = {"mean": float(np.mean(list(by_name.values()))), "across_categories": across}
    return {**by_name, **means, **overall}
