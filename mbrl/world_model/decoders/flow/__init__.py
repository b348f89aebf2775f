"""Normalising flows of images: RealNVP, Glow, and Glow with shared couplings.

`ImageFlow` is the density model, `FlowDecoder` the same as a world model's decoder.
"""

from mbrl.world_model.decoders.flow.decoder import FlowDecoder
from mbrl.world_model.decoders.flow.image_flow import ImageFlow

__all__ = ["FlowDecoder", "ImageFlow"]
