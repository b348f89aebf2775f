"""Gradients through a stage whose activations are not kept: they are recomputed from its output.

Every step can be inverted, so what went into it follows from what came out (RevNet,
arXiv:1707.04585): the memory of training does not grow with the number of steps. The price is one
more pass through each network. A step is undone with the same pass of its network that its gradient
is taken through, as a coupling keeps what the network reads.

Weights are inputs of the autograd function, not only attributes of what it runs: the gradients of a
network that serves many steps are summed inside, leave once, and hooks on a parameter (those of
DistributedDataParallel) fire once.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from mbrl.world_model.decoders.flow.coupling import Checkerboard, Estimator, Halves
    from mbrl.world_model.decoders.flow.steps import Step

Conditions = tuple[Tensor | None, Tensor | None]


class Steps(Protocol):
    """What a run of invertible steps must be able to do; `Stage` is one."""

    steps: nn.ModuleList

    def parts(self, index: int) -> "tuple[Step, Halves | Checkerboard]":
        """The linear part of a step, and its coupling."""

    def raw(
        self, index: int, kept: Tensor, conditions: Conditions, core: "Estimator | None"
    ) -> Tensor:
        """What the network of a step says about what its coupling keeps."""

    def step(
        self, index: int, z: Tensor, conditions: Conditions, core: "Estimator | None"
    ) -> tuple[Tensor, Tensor]:
        """One step forwards, and its log-determinant (N,)."""

    def weights(self, index: int, core: "Estimator | None") -> list[Tensor]:
        """All weights that a step depends on."""


def reversible_steps(
    stage: Steps, z: Tensor, conditions: Conditions, core: "Estimator | None"
) -> tuple[Tensor, Tensor]:
    """All steps of a stage, keeping only the output for the gradient.

    Args:
        stage: whose steps to take.
        z: (N, C, H, W).
        conditions: what every step is told; gradients reach them.
        core: a network from outside the stage, or None.

    Returns:
        z after the last step, and log|det| (N,).
    """
    # mypy: torch does not type `Function.apply`
    return _Reversible.apply(  # type: ignore[no-untyped-call]
        stage, core, z, *conditions, *_all_weights(stage, core)
    )


def _all_weights(stage: Steps, core: "Estimator | None") -> list[Tensor]:
    """The weights of all steps, each once, always in the same order."""
    every = [stage.weights(index, core) for index in range(len(stage.steps))]
    return list({id(weight): weight for part in every for weight in part}.values())


class _Reversible(torch.autograd.Function):
    """Inputs: stage, core, z, two conditions, then all weights."""

    @staticmethod
    def forward(
        ctx: Any, stage: Steps, core: "Estimator | None", z: Tensor, *rest: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Take all steps, without a graph."""
        device = z.device.type
        ctx.stage, ctx.core = stage, core
        ctx.autocast = {
            "device_type": device,
            "dtype": torch.get_autocast_dtype(device),
            "enabled": torch.is_autocast_enabled(device),
            "cache_enabled": False,  # a copy cached here would lack the graph it needs later
        }
        total = z.new_zeros(len(z))
        with torch.autocast(**ctx.autocast):
            for index in range(len(stage.steps)):
                z, log_det = stage.step(index, z, rest[:2], core)  # type: ignore[arg-type]
                total = total + log_det
        ctx.save_for_backward(z, *rest)
        return z, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, z_grad: Tensor, total_grad: Tensor) -> tuple[Tensor | None, ...]:
        """Walk back from the output, step by step."""
        z, *conditions = ctx.saved_tensors[:3]
        wanted = ctx.needs_input_grad[3:]
        # the weights themselves, not what was saved: a hook may have saved a copy of those
        inputs = [
            *(
                None if one is None else one.detach().requires_grad_(need)
                for one, need in zip(conditions, wanted[:2], strict=True)
            ),
            *_all_weights(ctx.stage, ctx.core),
        ]
        sums = _Sums(
            one for one, need in zip(inputs, wanted, strict=True) if need and one is not None
        )
        with torch.autocast(**ctx.autocast):
            for index in reversed(range(len(ctx.stage.steps))):
                z, z_grad = _step_back(
                    ctx.stage, ctx.core, index, z, z_grad, total_grad, inputs[:2], sums
                )
        grads = [sums.of(one) for one in inputs]
        return None, None, z_grad if ctx.needs_input_grad[2] else None, *grads


class _Sums:
    """Gradients of some leaves, summed over the steps."""

    def __init__(self, leaves: Iterable[Tensor]) -> None:
        self._leaves = {id(leaf): leaf for leaf in leaves}
        self._grads: dict[int, Tensor] = {}

    def wanted(self, candidates: Iterable[Tensor | None]) -> list[Tensor]:
        """Those of the candidates that are among the leaves."""
        return [one for one in candidates if one is not None and id(one) in self._leaves]

    def add(self, leaves: list[Tensor], grads: Sequence[Tensor | None]) -> None:
        """Take in gradients of `leaves`; None is zero."""
        for leaf, grad in zip(leaves, grads, strict=True):
            if grad is not None:
                known = self._grads.get(id(leaf))
                # the first one may be shared with other leaves: it is not ours to change
                self._grads[id(leaf)] = grad.clone() if known is None else known.add_(grad)

    def of(self, leaf: Tensor | None) -> Tensor | None:
        """The sum so far; None if nothing depended on the leaf."""
        return self._grads.get(id(leaf))


def _step_back(
    stage: Steps,
    core: "Estimator | None",
    index: int,
    z: Tensor,
    z_grad: Tensor,
    total_grad: Tensor,
    conditions: list[Tensor | None],
    sums: _Sums,
) -> tuple[Tensor, Tensor]:
    """Undo one step; adds the gradients of weights and conditions to `sums`.

    Returns:
        What went into the step, and its gradient.
    """
    linear, coupling = stage.parts(index)
    kept = coupling.kept(z).detach().requires_grad_()
    with torch.enable_grad():
        raw = stage.raw(index, kept, (conditions[0], conditions[1]), core)
    middle = coupling.invert(z, raw.detach()).requires_grad_()
    with torch.enable_grad():
        out, log_det = coupling.transform(middle, raw)
    through = [(out, z_grad), *([(log_det, total_grad)] if log_det.requires_grad else [])]
    leaves = sums.wanted([*conditions, *stage.weights(index, core)])
    middle_grad, kept_grad, *grads = torch.autograd.grad(
        [output for output, _ in through],
        [middle, kept, *leaves],
        [grad for _, grad in through],
        allow_unused=True,
    )
    sums.add(leaves, grads)
    middle_grad = middle_grad + coupling.spread(kept_grad)
    before = linear.linear_inverse(middle.detach()).requires_grad_()
    with torch.enable_grad():
        out, log_det = linear.linear(before)
    leaves = sums.wanted(linear.parameters())
    before_grad, *grads = torch.autograd.grad(
        [out, log_det], [before, *leaves], [middle_grad, total_grad.sum()], allow_unused=True
    )
    sums.add(leaves, grads)
    return before.detach(), before_grad
