"""A stage: K steps of flow at one size, which share their coupling's network or do not.

In: activations z (N, C, H, W) and a condition. Out: activations of the same shape, and log|det|.
A Glow step is ActNorm, a 1 x 1 convolution, a coupling of halves; a RealNVP step has no
convolution, and its couplings alternate in what they keep (checkerboard squares, then halves of the
channels; ActNorm stands where that paper has batch normalisation). The stage knows three ways to
remember what the gradient needs: all of it, one tensor per step, or only its own output.
"""

from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mbrl.world_model.decoders.flow.coupling import (
    Checkerboard,
    Condition,
    Estimator,
    Halves,
    Prepared,
)
from mbrl.world_model.decoders.flow.layers import (
    ActNorm,
    InvertibleConv,
    ZeroConv,
    mixed,
)
from mbrl.world_model.decoders.flow.reversible import reversible_steps
from mbrl.world_model.settings import FlowSettings

Kind = Literal["glow", "checkerboard", "halves"]
Conditions = tuple[Tensor | None, Tensor | None]


class Step(nn.Module):
    """What belongs to one step alone: its linear part and, by sharing mode, FiLM and last layer."""

    def __init__(self, channels: int, mixed: bool, width: int, outputs: int | None) -> None:
        """Build for C channels.

        Args:
            channels: C.
            mixed: with a 1 x 1 convolution.
            width: of the network's hidden layers if the step has FiLM of its own, else 0.
            outputs: of a last layer of its own, or None.
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
            z = mixed(z, weight) + _wide(weight @ self.norm.bias)
        return z, log_det * (z.shape[2] * z.shape[3])

    @torch.no_grad()
    def linear_inverse(self, z: Tensor) -> Tensor:
        """The inverse of `linear`."""
        scale = (-self.norm.log_scale).exp()
        if self.mix is None:
            return z * _wide(scale) - _wide(self.norm.bias)
        weight = scale[:, None] * self.mix.inverse()
        return mixed(z, weight) - _wide(self.norm.bias)


def _wide(x: Tensor) -> Tensor:
    return x[:, None, None]


class Stage(nn.Module):
    """K steps at one size."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        kind: Kind,
        settings: FlowSettings,
        maps: int,
        vector: int,
        core: Estimator | None = None,
        steps: int | None = None,
    ) -> None:
        """Build for activations of `shape` (C, H, W), conditions of `maps` and `vector`.

        Args:
            shape: (C, H, W) of the activations.
            kind: of the steps.
            settings: of the flow.
            maps: channels of the condition's map.
            vector: size of the condition's vector.
            core: with `sharing: global` the one network of all stages; a stage keeps no hold of
                it: who calls the stage brings it.
            steps: K, if not the settings'.
        """
        super().__init__()
        channels, height, width = shape
        self.memory = settings.memory
        count = settings.steps if steps is None else steps
        affine = settings.coupling == "affine"

        def coupling(index: int) -> Halves | Checkerboard:
            swapped = kind != "glow" and index % 2 == 1
            if kind == "checkerboard":
                return Checkerboard(channels, height, width, affine, swapped)
            return Halves(channels, affine, swapped)

        couplings = [coupling(index) for index in range(count)]
        self.couplings = nn.ModuleList(couplings)
        inputs, outputs = couplings[0].inputs, couplings[0].outputs
        sharing = settings.sharing
        film = settings.width if sharing in ("level+film", "level+film+proj", "global") else 0
        own = outputs if sharing == "level+film+proj" else None
        self.steps = nn.ModuleList(Step(channels, kind == "glow", film, own) for _ in range(count))
        networks = {"none": count, "global": 0}.get(sharing, 1)
        shared_outputs = None if sharing == "level+film+proj" else outputs
        self.networks = nn.ModuleList(
            Estimator(inputs, shared_outputs, settings.width, maps, vector) for _ in range(networks)
        )
        self.enter = nn.Conv2d(inputs, core.inputs, 1, bias=False) if core is not None else None
        self.leave = ZeroConv(settings.width, outputs, 1) if core is not None else None

    def _network(self, index: int, core: Estimator | None) -> Estimator:
        if core is not None:
            return core
        return cast(Estimator, self.networks[index if len(self.networks) > 1 else 0])

    def parts(self, index: int) -> tuple[Step, Halves | Checkerboard]:
        """The linear part of step `index`, and its coupling."""
        step, coupling = self.steps[index], self.couplings[index]
        return cast(Step, step), cast(Halves | Checkerboard, coupling)

    def _conditions(self, condition: Condition, core: Estimator | None, like: Tensor) -> Conditions:
        """What every step is told; prepared once if one network serves them all."""
        if len(self.networks) > 1:
            return condition.map, condition.vector
        return tuple(self._network(0, core).prepare(condition, like))  # type: ignore[return-value]

    def weights(self, index: int, core: Estimator | None) -> list[Tensor]:
        """All weights that step `index` depends on."""
        modules = [self.steps[index], self._network(index, core), self.enter, self.leave]
        return [weight for module in modules if module for weight in module.parameters()]

    def raw(
        self,
        index: int,
        kept: Tensor,
        conditions: Conditions,
        core: Estimator | None,
        initialise: bool = False,
    ) -> Tensor:
        """What step `index`'s network says, in the precision of `kept`."""
        (step, _), network = self.parts(index), self._network(index, core)
        prepared = (
            network.prepare(Condition(*conditions), kept)
            if len(self.networks) > 1
            else _prepared(conditions)
        )
        read = kept if self.enter is None else self.enter(kept).to(kept.dtype)
        hidden = network(read, prepared, step.film, initialise)
        leave = step.leave or self.leave or network.leave
        if leave is None:
            raise ValueError("a coupling's network needs a last layer: expected one, got None")
        return leave(hidden).to(kept.dtype)

    def step(
        self, index: int, z: Tensor, conditions: Conditions, core: Estimator | None
    ) -> tuple[Tensor, Tensor]:
        """Step `index` forwards; log|det| is (N,)."""
        step, coupling = self.parts(index)
        z, log_det = step.linear(z)
        z, more = coupling.transform(z, self.raw(index, coupling.kept(z), conditions, core))
        return z, more + log_det

    def forward(
        self, z: Tensor, condition: Condition, core: Estimator | None = None
    ) -> tuple[Tensor, Tensor]:
        """All steps; returns z (N, C, H, W) and log|det| (N,)."""
        conditions = self._conditions(condition, core, z)
        if self.memory == "reversible" and torch.is_grad_enabled():
            return reversible_steps(self, z, conditions, core)
        total = z.new_zeros(len(z))
        for index in range(len(self.steps)):
            if self.memory == "checkpoint" and torch.is_grad_enabled():
                z, log_det = checkpoint(
                    self.step,
                    index,
                    z,
                    conditions,
                    core,
                    use_reentrant=False,
                    preserve_rng_state=False,
                )
            else:
                z, log_det = self.step(index, z, conditions, core)
            total = total + log_det
        return z, total

    @torch.no_grad()
    def inverse(self, z: Tensor, condition: Condition, core: Estimator | None = None) -> Tensor:
        """All steps backwards, in one pass."""
        conditions = self._conditions(condition, core, z)
        for index in reversed(range(len(self.steps))):
            step, coupling = self.parts(index)
            z = coupling.invert(z, self.raw(index, coupling.kept(z), conditions, core))
            z = step.linear_inverse(z)
        return z

    @torch.no_grad()
    def initialise(
        self, z: Tensor, condition: Condition, core: Estimator | None = None, first: bool = True
    ) -> Tensor:
        """Set every ActNorm from what reaches it; returns where z ends.

        A network that serves many steps takes its statistics from the first of them; `first` says
        whether `core` is met for the first time.
        """
        conditions = self._conditions(condition, core, z)
        for index in range(len(self.steps)):
            step, coupling = self.parts(index)
            step.norm.initialise(z)
            z, _ = step.linear(z)
            fresh = len(self.networks) > 1 or (index == 0 and (core is None or first))
            raw = self.raw(index, coupling.kept(z), conditions, core, fresh)
            z, _ = coupling.transform(z, raw)
        return z


def _prepared(conditions: Conditions) -> Prepared:
    context, film = conditions
    if context is None:
        raise ValueError("a shared network needs its context: expected a tensor, got None")
    return Prepared(context, film)
