"""Numerics that the world model and the policy share: precision, random streams, two-hot scalars.

A processor without instructions for bfloat16 runs the same code slowly, and says nothing. So a
setting that asks for bfloat16 is a wish: it is granted where the device has it. Whether the
processor does stands with every result (`mbrl.run.provenance.machine`).

The random generators of a CPU and of a GPU have states of different size and give different numbers
from the same seed, so a checkpoint of one cannot be put into the other. A run that moves between
them goes on all the same.
"""

import zlib
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

_CPU_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""Names of `torch.cpu.get_capabilities`, on x86 and on ARM, any of which is enough."""


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 by itself; False for kinds that are not known."""
    if device.type == "cpu":
        known = torch.cpu.get_capabilities()
        return any(known.get(name, False) for name in _CPU_INSTRUCTIONS)
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    return False


def precision(device: torch.device, wanted: bool) -> torch.dtype:
    """Of matrix products: bfloat16 if it is wanted and the device has it, else float32."""
    return torch.bfloat16 if wanted and has_bfloat16(device) else torch.float32


def autocast(device: torch.device, wanted: bool) -> AbstractContextManager[object]:
    """A context with matrix products and convolutions in bfloat16, or one that changes nothing."""
    if precision(device, wanted) == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def restore_generator(generator: torch.Generator, state: Tensor) -> None:
    """Put a generator where another one was; `state` is of `torch.Generator.get_state`.

    On the same kind of device it goes on exactly; on another kind it begins anew, with a seed that
    follows from the state alone.
    """
    state = state.cpu()
    if len(state) == len(generator.get_state()):
        generator.set_state(state)
    else:
        generator.manual_seed(zlib.crc32(state.numpy().tobytes()))


def symlog(x: Tensor) -> Tensor:
    """sign(x) * ln(1 + |x|). Source: Webber, Meas. Sci. Technol. 24 (2013) 027001."""
    return torch.sign(x) * torch.log1p(torch.abs(x))


def symexp(x: Tensor) -> Tensor:
    """sign(x) * (exp(|x|) - 1), the inverse of `symlog`."""
    return torch.sign(x) * torch.expm1(torch.abs(x))


def symlog_bins(count: int, limit: float) -> Tensor:
    """Bin values (count,), evenly spaced under symlog, from -limit to limit.

    Raises:
        ValueError: `count` is even, so that no bin would be exactly zero.
    """
    if count % 2 == 0:
        raise ValueError(f"expected an odd number of bins (the middle one is 0), got {count}")
    edge = float(symlog(torch.tensor(limit, dtype=torch.float64)))
    return symexp(torch.linspace(-edge, edge, count, dtype=torch.float64)).float()


def widened(bins: Tensor, largest: Tensor) -> Tensor:
    """Bins (V,) as `symlog_bins` made them, that reach at least to `largest` (), a magnitude.

    The limit doubles as often as it takes; bins that reach far enough stay as they are, to the bit.
    Nothing is copied to the host. What is not finite counts as the largest float32.
    """
    most = torch.finfo(torch.float32).max
    limit, largest = bins[-1].double(), largest.double().nan_to_num(0.0, most, most)
    doubled = limit * torch.exp2(torch.ceil(torch.log2(largest / limit)))
    edge = symlog(torch.maximum(doubled, largest).clamp_max(most))
    even = torch.linspace(-1, 1, len(bins), dtype=torch.float64, device=bins.device)
    wider = symexp(even * edge).clamp(-most, most).float()
    return torch.where(largest > limit, wider, bins)


def two_hot_cross_entropy(logits: Tensor, target: Tensor, bins: Tensor) -> Tensor:
    """Cross-entropy between softmax(logits) and the two-hot code of a scalar.

    The code puts all mass on the two bins around the target, so that its mean is the target. It is
    never built: only the two logits concerned are gathered.

    Args:
        logits: (..., V).
        target: (...,), in the units of `bins`; values outside are clamped to the outermost bin.
        bins: (V,), as `symlog_bins` made them.

    Returns:
        (...,) nats.

    Source: Hafner et al., arXiv:2301.04104, section "Robust predictions".
    """
    target = target.clamp(bins[0], bins[-1])
    # The position under symlog names the lower bin at once: no search.
    place = (symlog(target) / symlog(bins[-1]) + 1) * (0.5 * (len(bins) - 1))
    lower = place.floor().long().clamp(0, len(bins) - 2)
    left, right = bins[lower], bins[lower + 1]
    share = ((target - left) / (right - left)).clamp(0, 1)
    pair = logits.gather(-1, torch.stack([lower, lower + 1], -1))  # (..., 2)
    return logits.logsumexp(-1) - torch.lerp(pair[..., 0], pair[..., 1], share)


def two_hot_mean(logits: Tensor, bins: Tensor) -> Tensor:
    """Expected value (...,) of the distribution softmax(logits) over `bins`, logits (..., V)."""
    with torch.autocast(logits.device.type, enabled=False):  # which would round to bfloat16
        return logits.float().softmax(-1) @ bins
