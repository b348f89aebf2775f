"""Which device: a name from a command or a config in, a torch device or one clear error out."""

import re

import torch

from mbrl.errors import ConfigError

NAMES = r"auto|cpu|cuda(:\d+)?"
"""What a device may be called."""


def pick_device(wanted: str) -> torch.device:
    """The device of that name; "auto" takes a GPU if there is one.

    Raises:
        ConfigError: it is not called so, or it is a GPU that is not there.
    """
    if not re.fullmatch(NAMES, wanted):
        raise ConfigError(f"device: expected cpu, auto, cuda or cuda:N, got {wanted}")
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(wanted)
    if not _is_there(device):
        found = torch.cuda.device_count()
        raise ConfigError(
            f"device: expected one that PyTorch finds, got {wanted}; it finds "
            f"{'no GPU' if found == 0 else f'cuda:0 to cuda:{found - 1}'} here; take cpu, or look "
            f"why (python -c 'import torch; torch.cuda.init()')"
        )
    return device


def reachable(wanted: str) -> torch.device:
    """The device of that name, or the CPU if it is not there: enough to measure with."""
    return pick_device(wanted) if _is_there(torch.device(wanted)) else torch.device("cpu")


def _is_there(device: torch.device) -> bool:
    return device.type == "cpu" or (device.index or 0) < torch.cuda.device_count()
