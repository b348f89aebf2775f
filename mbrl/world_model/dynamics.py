"""The RNN h_t = f(h_{t-1}, z_{t-1}, a_{t-1}) and the prior p(z_t | h_t).

In training all codes are known before the RNN runs, so a whole batch of sequences is one fused
`nn.GRU` call. Where an episode ends inside a sequence the state must start anew: the sequence is
cut there and the pieces become rows of a wider batch, which keeps both the single call and the
exact reset. In a dream and when acting, `step` runs the same weights one step at a time.
"""

import torch
from torch import Tensor, nn

from mbrl.world_model.code import Code
from mbrl.world_model.latent import Latent


def cut_at_starts(is_first: Tensor) -> tuple[Tensor, Tensor, int]:
    """The piece between episode starts that each step is in, and its place there: (B, T) int64.

    Beside them is the number of pieces. The start of a row always starts one.
    """
    starts = is_first.clone()
    starts[:, 0] = True
    row = starts.flatten().cumsum(0).view(starts.shape) - 1
    time = torch.arange(starts.shape[1], device=starts.device).expand(starts.shape)
    column = time - torch.where(starts, time, 0).cummax(1).values
    return row, column, int(row[-1, -1]) + 1


class Dynamics(nn.Module):
    """A GRU over (code, action) and an MLP prior over the next code."""

    def __init__(self, code: Code, action_size: int, hidden: int, prior_hidden: int) -> None:
        """Build for codes of `code.size`, actions of `action_size` and a state of `hidden`."""
        super().__init__()
        self.gru = nn.GRU(code.size + action_size, hidden, batch_first=True)
        self.prior_dense = nn.Linear(hidden, prior_hidden)
        self.prior_norm = nn.LayerNorm(prior_hidden)
        self.prior_out = nn.Linear(prior_hidden, code.raw_size)

    def prior(self, hidden: Tensor) -> Tensor:
        """Raw parameters of p(z | h): (..., D) to (..., raw_size)."""
        return self.prior_out(nn.functional.silu(self.prior_norm(self.prior_dense(hidden))))

    def step(self, hidden: Tensor, code: Tensor, action: Tensor) -> Tensor:
        """Advance states (N, D) by one step from the code (N, Z) and action (N, A) before it."""
        w_ih, w_hh, b_ih, b_hh = self.gru.all_weights[0]
        inputs = nn.functional.linear(torch.cat([code, action], -1), w_ih, b_ih)
        states = nn.functional.linear(hidden, w_hh, b_hh)
        reset_in, update_in, new_in = inputs.float().chunk(3, -1)  # (N, D) each
        reset_h, update_h, new_h = states.float().chunk(3, -1)
        reset = torch.sigmoid(reset_in + reset_h)
        update = torch.sigmoid(update_in + update_h)
        new = torch.tanh(new_in + reset * new_h)
        return torch.lerp(new, hidden, update)

    def sequence(
        self, codes: Tensor, prev_action: Tensor, is_first: Tensor, before: Latent
    ) -> Tensor:
        """The state of each row (B, T, D), which depends on rows before it only.

        It starts anew where `is_first` (B, T). `codes` (B, T, Z) are of the rows, `prev_action`
        (B, T, A) led to them, and `before` (B, ...) is what was before the first ones.
        """
        prev_code = torch.cat([before.code.unsqueeze(1), codes[:, :-1]], 1)  # (B, T, Z)
        inputs = torch.cat([prev_code, prev_action], -1)  # (B, T, Z + A)
        inputs = inputs * (~is_first).unsqueeze(-1)
        row, column, pieces = cut_at_starts(is_first)
        laid_out = inputs.new_zeros(pieces, inputs.shape[1], inputs.shape[2])
        laid_out = laid_out.index_put((row, column), inputs)  # (pieces, T, Z + A)
        start = before.hidden.new_zeros(pieces, self.gru.hidden_size)
        start[row[:, 0]] = before.hidden * (~is_first[:, :1])  # (pieces, D)
        states, _ = self.gru(laid_out, start.unsqueeze(0))  # (pieces, T, D)
        return states[row, column]  # (B, T, D)
