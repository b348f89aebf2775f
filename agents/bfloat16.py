"""bfloat16 where the device computes in it, float32 where it would only imitate it.

A processor without instructions for bfloat16 runs the same code slowly, and says nothing. So a
setting that asks for bfloat16 is a wish: it is granted where the device has it. Whether the
processor does stands with every result (`mbrl.provenance.machine`). Knows nothing of what is
computed.
"""

from contextlib import AbstractContextManager, nullcontext

import torch

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
    """A context in which matrix products and convolutions are in `precision(device, wanted)`.

    If that is float32 the context changes nothing.
    """
    if precision(device, wanted) == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)
