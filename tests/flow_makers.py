"""Small flows with all weights random, that several tests share."""

import torch

from mbrl.world_model.decoders.flow import ImageFlow
from mbrl.world_model.settings import FlowSettings

SHARING = ("none", "level", "level+film", "level+film+proj", "global")
FEATURES = 5


def shaken(module, scale=0.1):
    """The module with noise on all weights: layers that start at zero would hide mistakes."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(scale * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))
    return module


def nudged(module, scale):
    """The module with each layer moved by about `scale` of what it hands on."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in module.parameters():
            inputs = weight[0].numel() if weight.dim() > 1 else 1
            noise = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
            weight.add_(scale / inputs**0.5 * noise)
    return module


def flow(shape=(1, 8, 8), levels=16, features=0, dtype=torch.float64, shake=0.1, **settings):
    torch.manual_seed(0)
    values = {"scales": 2, "steps": 4, "width": 6, **settings}
    made = ImageFlow(
        shape, levels, features, FlowSettings(**values), hidden=7, map_channels=3, map_products=2
    )
    return shaken(made.to(dtype), shake)


def image_of(made, count=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(made.levels, (count, *made.shape), generator=generator, dtype=torch.uint8)


def numbers_of(made, count=3, seed=0):
    """Dequantised images."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((count, *made.shape), generator=generator, dtype=made.dtype) - 0.5


def features_of(made, count=3, seed=0):
    if made.condition is None:
        return None
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, FEATURES, generator=generator, dtype=made.dtype)
