"""The state of the grid layout: a convolutional GRU over the cells.

h_t = f(h_{t-1}, z_{t-1}, a_{t-1}). Only what depends on h loops over time: a depthwise and a
pointwise convolution, and a pooled global context that carries clocks and far effects. What comes
from codes and actions is made for all rows at once before the loop, and what the prior and the
heads see of the state is made for all rows at once after it.

A code of -1 is a cell that nothing is known of: before the first frame, and before the first row of
a sequence that begins within an episode.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class CellConv(nn.Conv2d):
    """A convolution of maps that are channels last, (N, g, w, maps); cells stay where they are.

    It is the layout in which CPUs convolve fastest.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, groups: int = 1) -> None:
        """Build for an odd kernel."""
        super().__init__(inputs, outputs, kernel, padding=kernel // 2, groups=groups)

    def forward(self, maps: Tensor) -> Tensor:
        """(N, g, w, inputs) to (N, g, w, outputs)."""
        return super().forward(maps.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def pooled(maps: Tensor) -> Tensor:
    """Mean and largest value over the cells: (N, g, w, M) to (N, 2 M)."""
    cells = maps.flatten(1, 2)
    return torch.cat([cells.mean(1), cells.amax(1)], -1)


class GridDynamics(nn.Module):
    """States are (N, g, w, D) float32, embedded codes (N, g, w, E)."""

    coordinates: Tensor

    def __init__(
        self, grid: tuple[int, int], embedding: int, action_size: int, hidden: int
    ) -> None:
        """Build for cells (g, w), embedded codes of E maps, actions (A,) and D maps of state."""
        super().__init__()
        rows, columns = (torch.linspace(-1, 1, size) for size in grid)
        coordinates = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1)
        self.register_buffer("coordinates", coordinates, persistent=False)
        self.look = CellConv(embedding + 4, hidden)
        self.action = nn.Linear(action_size, hidden)
        self.look_norm = nn.LayerNorm(hidden)
        self.gates_in = nn.Linear(hidden, 3 * hidden)
        with torch.no_grad():  # at first the state changes slowly
            self.gates_in.bias[hidden : 2 * hidden] -= 1.0
        self.around = CellConv(hidden, hidden, groups=hidden)
        self.gates_state = nn.Linear(hidden, 3 * hidden, bias=False)
        self.gates_global = nn.Linear(2 * hidden, 3 * hidden)
        self.mix = CellConv(hidden + embedding, hidden)
        self.mix_norm = nn.LayerNorm(hidden)
        self.mix_out = nn.Linear(hidden, hidden)
        self.context_norm = nn.LayerNorm(hidden)

    def inputs(self, embedded: Tensor, known: Tensor, action: Tensor, is_first: Tensor) -> Tensor:
        """What codes and actions add to the gates, of any number of rows: (N, g, w, 3 D).

        Args:
            embedded: (N, g, w, E) of the codes before, zero where unknown.
            known: (N, g, w) bool, whether there was one.
            action: (N, A) float that was taken then.
            is_first: (N,) bool, whether an episode starts, which says more than knowing nothing.
        """
        shape = *known.shape, 1
        seen = [
            embedded,
            self.coordinates.to(embedded.dtype).expand(len(known), -1, -1, -1),
            known.unsqueeze(-1).to(embedded.dtype),
            is_first.to(embedded.dtype).view(-1, 1, 1, 1).expand(shape),
        ]
        moved = self.look(torch.cat(seen, -1)) + self.action(action)[:, None, None]
        return self.gates_in(functional.silu(self.look_norm(moved)))

    def step(self, hidden: Tensor, inputs: Tensor) -> Tensor:
        """Advance states (N, g, w, D) by one step, given what `inputs` made."""
        around = functional.silu(self.around(hidden))
        state = self.gates_state(around) + self.gates_global(pooled(hidden))[:, None, None]
        maps = hidden.shape[-1]
        gates_in, new_in = inputs.split([2 * maps, maps], -1)
        gates_h, new_h = state.split([2 * maps, maps], -1)
        reset, update = torch.sigmoid(gates_in + gates_h).chunk(2, -1)
        new = torch.tanh(torch.addcmul(new_in, reset, new_h))
        return torch.lerp(hidden, new.float(), update.float())

    def sequence(self, hidden: Tensor, inputs: Tensor, is_first: Tensor) -> Tensor:
        """The states (T, B, g, w, D) of sequences whose inputs are (T, B, g, w, 3 D).

        A state starts anew where `is_first`, (T, B); `hidden` is the one before the first row.
        """
        states, keep = [], (~is_first).to(hidden.dtype)[..., None, None, None]
        for now, kept in zip(inputs.unbind(0), keep.unbind(0), strict=True):
            hidden = self.step(hidden * kept, now)
            states.append(hidden)
        return torch.stack(states)

    def context(self, hidden: Tensor, embedded: Tensor) -> Tensor:
        """What prior and heads see, (N, g, w, D): the state, and the codes before it."""
        mixed = functional.silu(
            self.mix_norm(self.mix(torch.cat([hidden.to(embedded.dtype), embedded], -1)))
        )
        context: Tensor = self.context_norm(hidden + self.mix_out(mixed))
        return context
