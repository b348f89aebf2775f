"""Which device: a name from a command or a config in, a torch device or one clear error out."""

import re

import torch

from mbrl.config.schema import DEVICES
from mbrl.errors import ConfigError


def pick_device(wanted: str) -> torch.device:
    """The device of that name; "auto" takes a GPU if there is one.

    Raises:
        ConfigError: no device has such a name, or it is a GPU that is not there.
    """
    device = reachable(wanted)
    if device.type == "cpu" and wanted.startswith("cuda"):
        found = torch.cuda.device_count()
        raise ConfigError(
            f"device: expected one that PyTorch finds, got {wanted}; it finds "
            f"{'no GPU' if found == 0 else f'cuda:0 to cuda:{found - 1}'} here; take cpu, or look "
            f"why (python -c 'import torch; torch.cuda.init()')"
        )
    return device


def reachable(wanted: str) -> torch.device:
    """The device of that name, or the CPU if it is not there: enough to measure with.

    Raises:
        ConfigError: no device has such a name.
    """
    if not re.fullmatch(DEVICES, wanted):
        raise ConfigError(f"device: expected cpu, auto, cuda or cuda:N, got {wanted}")
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(wanted)
    there = device.type == "cpu" or (device.index or 0) < torch.cuda.device_count()
    return device if there else torch.device("cpu")
