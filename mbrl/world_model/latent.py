"""The state a world model carries, and what its methods return of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

Memory = Mapping[str, Tensor]
"""What an encoder remembers of N sequences, (N, ...) each; only the encoder knows what it means."""


@dataclass(frozen=True)
class Latent:
    """All the state a world model carries.

    Attributes:
        hidden: (..., D) float32, deterministic RNN state; (..., g, w, D) in the grid layout.
        code: (..., Z) float32, stochastic code; (..., g, w) int64 in the grid layout.
        memory: what the encoder remembers after the last step; dreams have none.
    """

    hidden: Tensor
    code: Tensor
    memory: Memory = field(default_factory=dict)

    @classmethod
    def cat(cls, parts: Sequence["Latent"]) -> Self:
        """State and code of all parts, one after the other along the first axis."""
        return cls(
            torch.cat([part.hidden for part in parts]), torch.cat([part.code for part in parts])
        )

    @classmethod
    def where(cls, condition: Tensor, left: "Latent", right: "Latent") -> Self:
        """Of N latents: those of `left` where `condition` (N,), else those of `right`."""

        def of(one: Tensor, other: Tensor) -> Tensor:
            return torch.where(condition.view(-1, *[1] * (one.ndim - 1)), one, other)

        return cls(of(left.hidden, right.hidden), of(left.code, right.code))

    @property
    def features(self) -> Tensor:
        """(..., F), F = Z + D, of vectors: what heads and policies see."""
        return torch.cat([self.code, self.hidden], -1)

    @property
    def last(self) -> "Latent":
        """After the last step of sequences: (B, T, ...) to (B, ...), to be observed on from."""
        return Latent(self.hidden[:, -1], self.code[:, -1], self.memory)

    def __getitem__(self, index: object) -> "Latent":
        """Index the leading axes of state and code, for dreaming on."""
        return Latent(self.hidden[index], self.code[index])  # type: ignore[index]

    def to(self, device: torch.device | str) -> "Latent":
        """State and code on that device, for dreaming on; themselves if they are there."""
        return Latent(self.hidden.to(device), self.code.to(device))

    def flatten(self) -> "Latent":
        """(B, T, ...) to (B * T, ...), detached: starts for dreams."""
        return Latent(self.hidden.detach().flatten(0, 1), self.code.detach().flatten(0, 1))


@dataclass(frozen=True)
class Observed:
    """What observing leads to, of one step or of sequences."""

    latent: Latent  # (N, ...) or (B, T, ...)
    posterior: Tensor
    """What `WorldModel.rates` needs of q(z | x): normalised parameters (..., raw_size) float32; in
    the grid layout the codes (..., 2, g, w), those before and those of the row."""


def time_first(part: Tensor, single: bool) -> Tensor:
    """Sequences (B, T, ...) as (T, B, ...); a `single` step (N, ...) as a sequence of one row."""
    return part.unsqueeze(0) if single else part.transpose(0, 1)


def batch_first(part: Tensor, single: bool) -> Tensor:
    """The inverse of `time_first`."""
    return part[0] if single else part.transpose(0, 1)


@dataclass(frozen=True)
class ImaginedStep:
    """One imagined step: where it led, what it paid, and the probability of going on; (N, ...)."""

    latent: Latent
    reward: Tensor
    continue_prob: Tensor
