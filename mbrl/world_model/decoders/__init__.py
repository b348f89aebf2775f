"""Decoders: the observation likelihoods p(x | z, h) a world model can be trained with.

To add one: a subclass of `Decoder` in a file of its own, and one line in `DECODERS`.
"""

from mbrl.world_model.decoders.base import Decoder
from mbrl.world_model.decoders.deconv import DeconvDecoder
from mbrl.world_model.decoders.flow import FlowDecoder
from mbrl.world_model.decoders.pixelcnn import PixelCNNDecoder
from mbrl.world_model.decoders.world_models import WorldModelsDecoder

__all__ = ["DECODERS", "Decoder"]

DECODERS: dict[
    str,
    type[DeconvDecoder] | type[FlowDecoder] | type[PixelCNNDecoder] | type[WorldModelsDecoder],
] = {
    "deconv": DeconvDecoder,
    "flow": FlowDecoder,
    "pixelcnn": PixelCNNDecoder,
    "world_models": WorldModelsDecoder,
}
