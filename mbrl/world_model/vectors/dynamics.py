"""The state of the vectors layout: a GRU over what was seen and done.

h_t = f(h_{t-1}, z_{t-1}, a_{t-1}). Only what depends on h loops over time; what comes from codes
and actions is made for all rows at once before the loop.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class VectorDynamics(nn.Module):
    """States are (N, D) float32, what comes in (N, S)."""

    def __init__(self, size: int, width: int, hidden: int) -> None:
        """Build for S numbers that come in, a layer of W and D numbers of state."""
        super().__init__()
        self.look = nn.Linear(size + 1, width)
        self.look_norm = nn.LayerNorm(width)
        self.gates_in = nn.Linear(width, 3 * hidden)
        with torch.no_grad():  # at first the state changes slowly
            self.gates_in.bias[hidden : 2 * hidden] -= 1.0
        self.gates_state = nn.Linear(hidden, 3 * hidden, bias=False)

    def inputs(self, before: Tensor, is_first: Tensor) -> Tensor:
        """What adds to the gates, of rows (..., S) that are first in an episode or not (...,)."""
        seen = torch.cat([before, is_first.float().unsqueeze(-1)], -1)
        gates: Tensor = self.gates_in(functional.silu(self.look_norm(self.look(seen))))
        return gates

    def step(self, hidden: Tensor, inputs: Tensor) -> Tensor:
        """Advance states (N, D) by one step, given what `inputs` made, (N, 3 D)."""
        size = hidden.shape[-1]
        gates_in, new_in = inputs.split([2 * size, size], -1)
        gates_h, new_h = self.gates_state(hidden).split([2 * size, size], -1)
        reset, update = torch.sigmoid(gates_in + gates_h).chunk(2, -1)
        new = torch.tanh(torch.addcmul(new_in, reset, new_h))
        return torch.lerp(hidden, new, update)

    def sequence(self, hidden: Tensor, inputs: Tensor, is_first: Tensor) -> Tensor:
        """The states (T, B, D) of sequences whose inputs are (T, B, 3 D).

        A state starts anew where `is_first`, (T, B); `hidden` is the one before the first row.
        """
        states, keep = [], (~is_first).float().unsqueeze(-1)
        for now, kept in zip(inputs.unbind(0), keep.unbind(0), strict=True):
            hidden = self.step(hidden * kept, now)
            states.append(hidden)
        return torch.stack(states)
