"""The code of the grid layout: each cell's patch of pixels, by its nearest in a growing codebook.

A learnt code moves while the prior learns to foresee it, and may say what nothing can foresee. A
patch that was seen says exactly what is there, never moves, and costs no training (static nearest
neighbours did best of all codes on Craftax: Dedieu et al., arXiv:2502.01591). Frames of games are
often made of few patches.

A patch becomes a code of its own when it differs enough from all codes so far, the most frequent
first, until the book is full. Codes are never changed or taken away.
"""

from typing import Any

import torch
from torch import Tensor, nn

from mbrl.world_model.decoders.pixelcnn import from_blocks, to_blocks
from mbrl.world_model.normalise import follow

NEW_AT_ONCE = 128
"""New codes of one batch, at most: the next batch brings the others."""


class PatchCodebook(nn.Module):
    """Frames of integer levels (N, C, H, W) to cells of codes (N, g, w) int64, and back."""

    patches: Tensor
    used: Tensor
    misses: Tensor
    batches: Tensor
    factors: Tensor

    def __init__(
        self, shape: tuple[int, int, int], levels: int, cell: int, codes: int, distance: float
    ) -> None:
        """Build for frames of `shape` (C, H, W).

        Args:
            shape: of the frames; `cell` divides height and width.
            levels: V of each pixel.
            cell: rows and columns of pixels of a cell.
            codes: of the book when it is full.
            distance: squared difference of intensities in [0, 1], summed over a patch, from which
                a patch becomes a code of its own.
        """
        super().__init__()
        self.channels, height, width = shape
        self.levels, self.cell, self.codes, self.distance = levels, cell, codes, distance
        self.size = self.channels * cell * cell
        self.grid = height // cell, width // cell
        self.register_buffer("patches", torch.zeros(codes, self.size, dtype=torch.uint8))
        self.register_buffer("used", torch.ones((), dtype=torch.int64))
        # share of pixels that their code gets wrong
        self.register_buffer("misses", torch.zeros(()))
        self.register_buffer("batches", torch.zeros(()))
        generator = torch.Generator().manual_seed(0)
        factors = torch.randint(2**62, (self.size,), generator=generator) * 2 + 1
        self.register_buffer("factors", factors, persistent=False)
        self._known = 1
        self.register_load_state_dict_post_hook(_recount)  # type: ignore[no-untyped-call]

    @property
    def known(self) -> int:
        """K, codes known so far, at least 1: the first code is the empty patch."""
        return self._known

    def contents(self) -> Tensor:
        """Intensities in [0, 1] of the known codes, (K, S) float32."""
        return self.patches[: self.known].float() / (self.levels - 1)

    def nearest(self, levels: Tensor) -> Tensor:
        """The nearest code of each cell: (N, C, H, W) levels to (N, g, w) int64."""
        blocks = to_blocks(levels, self.cell)  # (N, g, w, S)
        different, place, _ = self._distinct(blocks.flatten(0, 2))
        return self._distances(different).argmin(1)[place].view(blocks.shape[:3])

    def levels_of(self, code: Tensor) -> Tensor:
        """Frames that codes stand for: (N, g, w) to levels (N, C, H, W) uint8."""
        return from_blocks(self.patches[code.clamp_min(0)], self.channels, self.cell)

    @torch.no_grad()
    def learn(self, levels: Tensor) -> Tensor:
        """Take new patches of frames (N, C, H, W) into the book, as long as there is room.

        Returns the nearest code of each cell, (N, g, w), as `nearest` does from then on.
        """
        blocks = to_blocks(levels, self.cell)  # (N, g, w, S)
        patches = blocks.flatten(0, 2)
        different, place, count = self._distinct(patches)
        gap = self._distances(different)
        if self._known < self.codes:
            chosen = torch.nonzero(gap.amin(1) > self._apart).flatten()
            chosen = chosen[count[chosen].argsort(descending=True, stable=True)]
            self._add(_of_all_ranks(different[chosen[:NEW_AT_ONCE]]))
            gap = self._distances(different)
        code = gap.argmin(1)[place]
        self.batches += 1
        follow(self.misses, (patches != self.patches[code]).float().mean(), self.batches, 0.01)
        return code.view(blocks.shape[:3])

    @property
    def _apart(self) -> float:
        """The squared difference of levels from which patches differ; of equal ones it is 0."""
        return max(self.distance * (self.levels - 1) ** 2, 0.5)

    def _add(self, patches: Tensor) -> None:
        """Add patches (M, S) unlike all codes, in their order, each if it is unlike those before.

        One transfer to the host, whatever the device; float32 holds these whole numbers exactly.
        """
        near = (_squared_differences(patches, patches) <= self._apart).tolist()
        added: list[int] = []
        for index, row in enumerate(near):
            if self._known + len(added) < self.codes and not any(row[other] for other in added):
                added.append(index)
        self.patches[self._known : self._known + len(added)] = patches[added]
        self._known += len(added)
        self.used.fill_(self._known)

    def _distances(self, patches: Tensor) -> Tensor:
        """Squared differences of levels between patches (M, S) and all codes, (M, K)."""
        return _squared_differences(patches, self.patches[: self._known])

    def _distinct(self, patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The distinct ones (M, S) of patches (N, S), where each is among them, and their number.

        They are told apart by a hash of 64 bits.
        """
        keys = (patches.long() * self.factors).sum(1)
        _, place, count = torch.unique(keys, return_inverse=True, return_counts=True)
        first = place.new_full((len(count),), len(keys))
        order = torch.arange(len(keys), device=keys.device)
        first.scatter_reduce_(0, place, order, "amin")
        return patches[first], place, count


def _squared_differences(left: Tensor, right: Tensor) -> Tensor:
    """Between all rows of (M, S) and (K, S) levels: (M, K)."""
    left, right = left.float(), right.float()
    squares = left.square().sum(1, keepdim=True) + right.square().sum(1)
    return torch.addmm(squares, left, right.T, alpha=-2)


def _recount(module: nn.Module, _: Any) -> None:
    """After loading, the number of known codes is what the buffer says."""
    book: Any = module
    book._known = int(book.used)


def _of_all_ranks(patches: Tensor) -> Tensor:
    """Patches (M, S) of all learners in the order of their ranks, so that all books stay equal."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return patches
    mine = patches.new_zeros(NEW_AT_ONCE, patches.shape[1])
    mine[: len(patches)] = patches
    ranks = torch.distributed.get_world_size()
    counts = [torch.zeros(1, dtype=torch.int64, device=mine.device) for _ in range(ranks)]
    torch.distributed.all_gather(counts, torch.full_like(counts[0], len(patches)))
    parts = [torch.empty_like(mine) for _ in range(ranks)]
    torch.distributed.all_gather(parts, mine)
    return torch.cat([part[: int(n)] for part, n in zip(parts, counts, strict=True)])
