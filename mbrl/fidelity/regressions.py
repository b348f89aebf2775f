"""Regressions on a frozen code: how well numbers, not classes, can be read out of it.

AtariARI's classifiers treat every value of a position as a class of its own, which punishes a miss
by half a pixel as hard as a miss by thirty; a ridge regression and a small network stand beside
them. The same rule holds: fitted on training frames, chosen on their validation part, scored on
held-out episodes.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mbrl.fidelity.probes import Split, Targets

RIDGE = (0.1, 1.0, 10.0, 100.0, 1000.0)
"""Penalties tried by `ridge`, in units of the features' overall variance."""


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
    split: Split, targets: Targets, rng: np.random.Generator, *, hidden: int = 128, epochs: int = 30
) -> NDArray[np.float64]:
    """One hidden layer of SiLU units on all variables at once, the epoch chosen on validation.

    Adam, learning rate 1e-3 falling to 0, batches of 128, weight decay 1e-4. What it reads better
    than `ridge` is in the code but not laid out linearly.

    Returns:
        (M, V) guesses for the test rows, in the targets' units.
    """
    train, validation, test = (
        torch.as_tensor(part, dtype=torch.float32) for part in _standard(split)
    )
    mean = targets.train.mean(0, dtype=np.float64)
    scale = targets.train.std(0, dtype=np.float64) + 1e-6
    wanted, check = (
        torch.as_tensor((part - mean) / scale, dtype=torch.float32)
        for part in (targets.train, targets.validation)
    )
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    inner = torch.randn(train.shape[1], hidden, generator=generator) / train.shape[1] ** 0.5
    outer = torch.randn(hidden, len(targets.names), generator=generator) / hidden**0.5
    weights = [inner, torch.zeros(hidden), outer, torch.zeros(len(targets.names))]
    for weight in weights:
        weight.requires_grad_(True)
    optimizer = torch.optim.AdamW(weights, lr=1e-3, weight_decay=1e-4)
    steps = epochs * -(-len(train) // 128)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)

    def guess(x: Tensor) -> Tensor:
        return torch.nn.functional.silu(x @ weights[0] + weights[1]) @ weights[2] + weights[3]

    lowest, chosen = float("inf"), torch.zeros(len(test), len(targets.names))
    for _ in range(epochs):
        for rows in torch.as_tensor(rng.permutation(len(train))).split(128):
            loss = (guess(train[rows]) - wanted[rows]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            error = float((guess(validation) - check).square().mean())
            if error < lowest:
                lowest, chosen = error, guess(test)
    return chosen.double().numpy() * scale + mean
