"""Regressions on a frozen code: how well numbers, not classes, can be read out of it.

AtariARI's classifiers treat every value of a position as a class of its own, which punishes a miss
by half a pixel as hard as a miss by thirty; a ridge regression and a small network stand beside
them. The same rule holds: fitted on training frames, chosen on their validation part, scored on
held-out episodes.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy, silu

from mbrl.studies.fidelity.probes import Split, Targets

RIDGE = (0.1, 1.0, 10.0, 100.0, 1000.0)
"""Penalties tried by `ridge`, in units of the features' overall variance."""
NETWORK_EPOCHS = 30


def r2(target: NDArray[np.float64], guess: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 - squared error / variance, per column of (M, V); NaN where the target is constant."""
    error = np.square(target - guess).mean(0)
    spread = target.var(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        # a mean of equal numbers may be off in the last digit
        return np.where(spread > 1e-9, 1 - error / spread, np.nan)


def _standard(split: Split) -> tuple[NDArray[np.float64], ...]:
    """The three parts, centred on the training rows and divided by one overall deviation.

    Not by one for each feature: a class of the code that is rare in training, or never seen there,
    would be blown up in the others.
    """
    mean = split.train.mean(0, dtype=np.float64)
    scale = np.sqrt(np.square(split.train - mean).mean()) + 1e-6
    return tuple((part - mean) / scale for part in (split.train, split.validation, split.test))


def ridge(split: Split, targets: Targets) -> NDArray[np.float64]:
    """Linear least squares with a penalty chosen per variable on the validation rows.

    Returns:
        (M, V) guesses for the test rows, in the targets' units.
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
    split: Split,
    targets: Targets,
    rng: np.random.Generator,
    *,
    hidden: int = 128,
    epochs: int = NETWORK_EPOCHS,
) -> NDArray[np.float64]:
    """One hidden layer of SiLU units on all variables at once, the epoch chosen on validation.

    What it reads better than `ridge` is in the code but not laid out linearly.

    Returns:
        (M, V) guesses for the test rows, in the targets' units.
    """
    mean = targets.train.mean(0, dtype=np.float64)
    scale = targets.train.std(0, dtype=np.float64) + 1e-6
    wanted, check = (
        torch.as_tensor((part - mean) / scale, dtype=torch.float32)
        for part in (targets.train, targets.validation)
    )
    guess = _fit(split, wanted, check, wanted.shape[1], _mean_square, rng, hidden, epochs)
    return guess.double().numpy() * scale + mean


def network_classify(
    split: Split,
    targets: Targets,
    rng: np.random.Generator,
    *,
    hidden: int = 128,
    epochs: int = NETWORK_EPOCHS,
) -> NDArray[np.int64]:
    """The same network with a softmax over each variable's training values.

    Returns:
        (M, V) labels for the test rows.
    """
    classes = [np.unique(column) for column in targets.train.T]
    sizes = [len(values) for values in classes]
    wanted, check = (
        torch.as_tensor(
            np.stack(
                [
                    # a value that training never had cannot be learnt: no part of the choice
                    np.where(np.isin(column, values), np.searchsorted(values, column), -100)
                    for column, values in zip(part.T, classes, strict=True)
                ],
                1,
            )
        )
        for part in (targets.train, targets.validation)
    )

    def loss(output: Tensor, label: Tensor) -> Tensor:
        parts = zip(output.split(sizes, 1), label.T, strict=True)
        sums = [cross_entropy(part, column, reduction="sum") for part, column in parts]
        return torch.stack(sums).sum() / label.numel()

    output = _fit(split, wanted, check, sum(sizes), loss, rng, hidden, epochs)
    parts = zip(output.split(sizes, 1), classes, strict=True)
    return np.stack([values[part.argmax(1).numpy()] for part, values in parts], 1).astype(np.int64)


def _mean_square(output: Tensor, wanted: Tensor) -> Tensor:
    return (output - wanted).square().mean()


@torch.enable_grad()  # measures run without gradients; a reader is fitted all the same
def _fit(
    split: Split,
    wanted: Tensor,
    check: Tensor,
    outputs: int,
    loss: Callable[[Tensor, Tensor], Tensor],
    rng: np.random.Generator,
    hidden: int,
    epochs: int,
) -> Tensor:
    """Fit the network; its outputs (M, outputs) for the test rows at the best validation epoch.

    Adam, learning rate 1e-3 falling to 0, batches of 128, weight decay 1e-4.
    """
    train, validation, test = (
        torch.as_tensor(part, dtype=torch.float32) for part in _standard(split)
    )
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    inner = torch.randn(train.shape[1], hidden, generator=generator) / train.shape[1] ** 0.5
    outer = torch.randn(hidden, outputs, generator=generator) / hidden**0.5
    weights = [inner, torch.zeros(hidden), outer, torch.zeros(outputs)]
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
