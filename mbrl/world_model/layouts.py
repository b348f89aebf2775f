"""Which class a layout is, and the one way to build a world model."""

from mbrl.errors import ConfigError
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
    """The layout that `auto` stands for.

    Raises:
        ConfigError: there is an image, and something else beside it.
    """
    streams = streams_of(observation_space)
    images = [stream.column for stream in streams if stream.kind == "image"]
    if not images:
        return "vectors"
    if len(streams) > 1:
        others = [stream.column for stream in streams if stream.column not in images[:1]]
        raise ConfigError(
            f"world model: expected one image, or numbers and categories without one, got the "
            f"image {images[0]} beside {', '.join(others)}; name the columns to keep in env.observe"
        )
    return "flat"
