"""The base of every section of a config; imports nothing heavy, so that checking one is quick."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Frozen, and closed: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)
