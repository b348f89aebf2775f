"""Which class a layout is, and the one way to build a world model."""

from mbrl.world_model.flat import FlatWorldModel
from mbrl.world_model.grid.model import GridWorldModel
from mbrl.world_model.model import Space, WorldModel
from mbrl.world_model.vectors.model import VectorWorldModel
from mbrl.world_model.settings import WorldModelSettings

LAYOUTS: dict[str, type[WorldModel]] = {"flat": FlatWorldModel, "grid": GridWorldModel, "vectors": VectorWorldModel}
"""World models by the name that `world_model.layout` gives."""


def make_world_model(
    observation_space: Space, action_space: Space, settings: WorldModelSettings
) -> WorldModel:
    """Build the world model of these settings.

    Raises:
        ConfigError: it cannot model such observations or actions, or not with these settings.
    """
    return LAYOUTS[settings.layout](observation_space, action_space, settings)
