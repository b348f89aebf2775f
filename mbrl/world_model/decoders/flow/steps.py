"""A stage: K steps of flow at one size, which share their coupling's network or do not.

In: activations z (N, C, H, W) and a condition. Out: activations of the same shape, and log|det|.
A Glow step is ActNorm, a 1 x 1 convolution, a coupling of halves; a RealNVP step has no
convolution, and its couplings alternate in what they leave unchanged (checkerboard squares, then
halves of the channels; ActNorm stands where that paper has batch normalisation).

A stage stores for the gradient all activations, one tensor per step, or its output alone. In the
last case the backward pass inverts every step to find what went into it (RevNet, arXiv:1707.04585):
memory does not grow with the number of steps, at the price of one more pass through each network.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from mbrl.world_model.decoders.flow.layers import (
    ActNorm,
    Checkerboard,
    Condition,
    Coupling,
    Estimator,
    Halves,
    InvertibleConv,
    Prepared,
    ZeroConv,
    mix_channels,
)
from mbrl.world_model.settings import FlowSettings

Kind = Literal["glow", "checkerboard", "halves"]
Conditions = Condition | Prepared
"""What every step of a stage gets; prepared once if one network serves them all."""


class Step(nn.Module):
    """What belongs to one step alone: its linear part and, by sharing mode, FiLM and last layer."""

    def __init__(self, channels: int, mixed: bool, width: int, outputs: int | None) -> None:
        """Build for C channels, with or without a 1 x 1 convolution (`mixed`).

        `width` is that of FiLM of its own, or 0; `outputs` those of its own last layer, or None.
        """
        super().__init__()
        self.norm = ActNorm(channels)
        self.mix = InvertibleConv(channels) if mixed else None
        self.film = nn.Parameter(torch.zeros(4, width)) if width else None
        self.leave = ZeroConv(width, outputs, 1) if outputs else None

    def linear(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """ActNorm and the 1 x 1 convolution as one; returns log|det| as a scalar."""
        log_det = self.norm.log_scale.sum()
        scale = self.norm.log_scale.exp()
        if self.mix is None:
            z = torch.addcmul(_wide(self.norm.bias * scale), z, _wide(scale))
        else:
            weight = self.mix.weight() * scale
            log_det = log_det + self.mix.log_det()
            z = mix_channels(z, weight) + _wide(weight @ self.norm.bias)
        return z, log_det * (z.shape[2] * z.shape[3])

    @torch.no_grad()
    def linear_inverse(self, z: Tensor) -> Tensor:
        """The inverse of `linear`."""
        scale = (-self.norm.log_scale).exp()
        if self.mix is None:
            return z * _wide(scale) - _wide(self.norm.bias)
        weight = scale[:, None] * self.mix.inverse()
        return mix_channels(z, weight) - _wide(self.norm.bias)


def _wide(x: Tensor) -> Tensor:
    return x[:, None, None]


def _coupling(kind: Kind, shape: tuple[int, int, int], affine: bool, index: int) -> Coupling:
    """The coupling of step `index`; those of RealNVP alternate."""
    swapped = kind != "glow" and index % 2 == 1
    if kind == "checkerboard":
        return Checkerboard(*shape, affine, swapped)
    return Halves(shape[0], affine, swapped)


class Stage(nn.Module):
    """K steps at one size."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        kind: Kind,
        settings: FlowSettings,
        steps: int,
        maps: int = 0,
        vector: int = 0,
        core: Estimator | None = None,
    ) -> None:
        """Build K `steps` of a kind for activations of `shape` (C, H, W).

        `core` is the one network of all stages, if they share one.
        """
        super().__init__()
        self.shape, self.kind, self.memory = shape, kind, settings.memory
        self._core = (core,)  # in a tuple, so that it is no submodule of every stage
        affine, width, sharing = settings.coupling == "affine", settings.width, settings.sharing
        couplings = [_coupling(kind, shape, affine, index) for index in range(steps)]
        inputs, outputs = couplings[0].inputs, couplings[0].outputs
        self.couplings = nn.ModuleList(couplings)
        film = width if sharing in ("level+film", "level+film+proj", "global") else 0
        own = outputs if sharing == "level+film+proj" else None
        self.steps = nn.ModuleList(Step(shape[0], kind == "glow", film, own) for _ in range(steps))
        networks = {"none": steps, "global": 0}.get(sharing, 1)
        last = None if sharing == "level+film+proj" else outputs
        self.networks = nn.ModuleList(
            Estimator(inputs, last, width, maps, vector) for _ in range(networks)
        )
        self.enter = nn.Conv2d(inputs, core.inputs, 1, bias=False) if core is not None else None
        self.leave = ZeroConv(width, outputs, 1) if core is not None else None

    def parts(self, index: int) -> tuple[Step, Coupling]:
        """The linear part of step `index`, and its coupling."""
        return cast(Step, self.steps[index]), cast(Coupling, self.couplings[index])

    def _network(self, index: int) -> Estimator:
        (core,) = self._core
        if core is not None:
            return core
        return cast(Estimator, self.networks[index if len(self.networks) > 1 else 0])

    def _conditions(self, condition: Condition, like: Tensor) -> Conditions:
        return condition if len(self.networks) > 1 else self._network(0).prepare(condition, like)

    def weights(self, index: int) -> list[Tensor]:
        """All weights that step `index` depends on."""
        modules = [self.steps[index], self._network(index), self.enter, self.leave]
        return [weight for module in modules if module for weight in module.parameters()]

    def raw(
        self, index: int, unchanged: Tensor, conditions: Conditions, initialise: bool = False
    ) -> Tensor:
        """The output of step `index`'s network, in the precision of `unchanged`."""
        (step, _), network = self.parts(index), self._network(index)
        if isinstance(conditions, Condition):
            conditions = network.prepare(conditions, unchanged)
        read = unchanged if self.enter is None else self.enter(unchanged).to(unchanged.dtype)
        hidden = network(read, conditions, step.film, initialise)
        leave = cast(ZeroConv, step.leave or self.leave or network.leave)
        return leave(hidden).to(unchanged.dtype)

    def step(self, index: int, z: Tensor, conditions: Conditions) -> tuple[Tensor, Tensor]:
        """Step `index` forwards; log|det| is (N,)."""
        step, coupling = self.parts(index)
        z, log_det = step.linear(z)
        z, more = coupling.transform(z, self.raw(index, coupling.unchanged(z), conditions))
        return z, more + log_det

    def forward(self, z: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """All steps; returns z (N, C, H, W) and log|det| (N,)."""
        conditions = self._conditions(condition, z)
        memory = self.memory if torch.is_grad_enabled() else "plain"
        if memory == "reversible":
            # mypy: torch does not type `Function.apply`
            return _Reversible.apply(  # type: ignore[no-untyped-call]
                self, type(conditions), z, *conditions, *_all_weights(self)
            )
        take: Callable[..., tuple[Tensor, Tensor]] = self.step
        if memory == "checkpoint":
            take = partial(checkpoint, take, use_reentrant=False, preserve_rng_state=False)
        total = z.new_zeros(len(z))
        for index in range(len(self.steps)):
            z, log_det = take(index, z, conditions)
            total = total + log_det
        return z, total

    @torch.no_grad()
    def inverse(self, z: Tensor, condition: Condition) -> Tensor:
        """All steps backwards, in one pass."""
        conditions = self._conditions(condition, z)
        for index in reversed(range(len(self.steps))):
            step, coupling = self.parts(index)
            z = coupling.invert(z, self.raw(index, coupling.unchanged(z), conditions))
            z = step.linear_inverse(z)
        return z

    @torch.no_grad()
    def initialise(self, z: Tensor, condition: Condition, first: bool = True) -> Tensor:
        """Set every ActNorm from the activations that reach it; returns z after the last step.

        A shared network takes its statistics from its first step; `first`: of the first stage.
        """
        conditions = self._conditions(condition, z)
        for index in range(len(self.steps)):
            step, coupling = self.parts(index)
            step.norm.initialise(z)
            z, _ = step.linear(z)
            fresh = len(self.networks) > 1 or (index == 0 and (first or self._core[0] is None))
            raw = self.raw(index, coupling.unchanged(z), conditions, fresh)
            z, _ = coupling.transform(z, raw)
        return z


# -- gradients without stored activations ----------------------------------------------------------

Sums = dict[Tensor, Tensor | None]
"""Gradients of leaves, summed over the steps; None before the first."""


def _all_weights(stage: Stage) -> list[Tensor]:
    """The weights of all steps, each once, always in the same order."""
    every = [weight for index in range(len(stage.steps)) for weight in stage.weights(index)]
    return list(dict.fromkeys(every))


class _Reversible(torch.autograd.Function):
    """All steps of a stage, which saves its output alone for the gradient.

    Inputs: stage, the kind of the conditions, z, the conditions' two tensors, then all weights: so
    gradients of a network that serves many steps are summed inside, and hooks on a parameter
    (DistributedDataParallel's) fire once.
    """

    @staticmethod
    def forward(
        ctx: Any,
        stage: Stage,
        kind: Callable[..., Conditions],
        z: Tensor,
        *rest: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Take all steps, without a graph."""
        device = z.device.type
        ctx.stage, ctx.kind = stage, kind
        ctx.autocast = {
            "device_type": device,
            "dtype": torch.get_autocast_dtype(device),
            "enabled": torch.is_autocast_enabled(device),
            "cache_enabled": False,  # a copy cached here would lack the graph it needs later
        }
        total = z.new_zeros(len(z))
        with torch.autocast(**ctx.autocast):
            for index in range(len(stage.steps)):
                z, log_det = stage.step(index, z, kind(*rest[:2]))
                total = total + log_det
        ctx.save_for_backward(z, *rest)
        return z, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, z_grad: Tensor, total_grad: Tensor) -> tuple[Tensor | None, ...]:
        """Walk back from the output, step by step."""
        z, *saved = ctx.saved_tensors[:3]
        needed = ctx.needs_input_grad[3:]
        # the weights themselves, not what was saved: a hook may have saved a copy of those
        inputs = [
            *(
                None if one is None else one.detach().requires_grad_(need)
                for one, need in zip(saved, needed[:2], strict=True)
            ),
            *_all_weights(ctx.stage),
        ]
        pairs = zip(inputs, needed, strict=True)
        sums: Sums = {one: None for one, need in pairs if need and one is not None}
        conditions = ctx.kind(*inputs[:2])
        with torch.autocast(**ctx.autocast):
            for index in reversed(range(len(ctx.stage.steps))):
                z, z_grad = _step_back(ctx.stage, index, z, z_grad, total_grad, conditions, sums)
        grads = [None if one is None else sums.get(one) for one in inputs]
        return None, None, z_grad if ctx.needs_input_grad[2] else None, *grads


def _add(sums: Sums, leaves: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
    for leaf, grad in zip(leaves, grads, strict=True):
        if grad is not None:
            total = sums[leaf]
            # autograd may hand the first one to other leaves as well, so it is not changed
            sums[leaf] = grad.clone() if total is None else total.add_(grad)


def _step_back(
    stage: Stage,
    index: int,
    z: Tensor,
    z_grad: Tensor,
    total_grad: Tensor,
    conditions: Conditions,
    sums: Sums,
) -> tuple[Tensor, Tensor]:
    """Undo one step: what went into it, and its gradient. Those of leaves are added to `sums`.

    One pass through the network serves the inverse and the gradient, since a coupling does not
    change what its network reads.
    """
    step, coupling = stage.parts(index)
    unchanged = coupling.unchanged(z).detach().requires_grad_()
    with torch.enable_grad():
        raw = stage.raw(index, unchanged, conditions)
    middle = coupling.invert(z, raw.detach()).requires_grad_()
    with torch.enable_grad():
        out, log_det = coupling.transform(middle, raw)
    through = [(out, z_grad), *([(log_det, total_grad)] if log_det.requires_grad else [])]
    leaves = [one for one in (*conditions, *stage.weights(index)) if one in sums]
    middle_grad, unchanged_grad, *grads = torch.autograd.grad(
        [output for output, _ in through],
        [middle, unchanged, *leaves],
        [grad for _, grad in through],
        allow_unused=True,
    )
    _add(sums, leaves, grads)
    middle_grad = middle_grad + coupling.spread(unchanged_grad)
    before = step.linear_inverse(middle.detach()).requires_grad_()
    with torch.enable_grad():
        out, log_det = step.linear(before)
    leaves = [weight for weight in step.parameters() if weight in sums]
    before_grad, *grads = torch.autograd.grad(
        [out, log_det], [before, *leaves], [middle_grad, total_grad.sum()], allow_unused=True
    )
    _add(sums, leaves, grads)
    return before.detach(), before_grad
