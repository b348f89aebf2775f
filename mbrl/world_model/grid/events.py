"""What happened between two frames, wherever it was: all that reward and continue heads see.

Rewards and endings are mostly events at a place: a brick is gone, an enemy is where the player is.
The first thousands of steps hold a few dozen of them, and heads that see the state learn these by
heart. So they see no more than codes before and after, around each cell, pooled over all cells.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from mbrl.world_model.grid.dynamics import CellConv, pooled


class Events(nn.Module):
    """Embedded codes before and after, (N, g, w, E) each, to features (N, 2 M)."""

    def __init__(self, embedding: int, maps: int) -> None:
        """Build for codes of E maps, and M detectors."""
        super().__init__()
        self.look = CellConv(2 * embedding, maps)

    def forward(self, before: Tensor, now: Tensor) -> Tensor:
        """The mean and the largest answer of each detector over all cells."""
        return pooled(functional.silu(self.look(torch.cat([before, now], -1))))
