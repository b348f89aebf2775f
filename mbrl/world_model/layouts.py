"""Which class a layout is, and the one way to build a world model."""

from mbrl.streams import streams_of
from mbrl.world_model.flat import FlatWorldModel
from mbrl.world_model.grid.model import GridWorldModel
from mbrl.world_model.model import Space, WorldModel
from mbrl.world_model.settings import WorldModelSettings
from mbrl.world_model.vectors.model import VectorWorldModel

LAYOUTS: dict[str, type[WorldModel]] = {
    "flat": FlatWorldModel,
    "grid": GridWorldModel,
    "vectors": VectorWorldModel,
}
"""World models by the name that `world_model.layout` gives."""


def make_world_model(
    observation_space: Space, action_space: Space, settings: WorldModelSettings
) -> WorldModel:
    """Build the world model of these settings.

    Raises:
        ConfigError: it cannot model such observations or actions, or not with these settings.
    """
    layout = layout_of(observation_space) if settings.layout == "auto" else settings.layout
    return LAYOUTS[layout](observation_space, action_space, settings)


def layout_of(observation_space: Space) -> str:
    """The layout that `auto` stands for: `flat` where there is an image, else `vectors`.

    Raises:
        ConfigError: a part of an observation has no fixed size.
    """
    kinds = {stream.kind for stream in streams_of(observation_space)}
    return "flat" if "image" in kinds else "vectors"
