"""EnvSettings: which environment, and how its observations are prepared.

In: the `env` section of a config. Out: a checked, frozen value that `envs.make_env` turns into an
environment. A setting that the environment's family (`envs.families`) cannot honour is refused
here, before anything is built; nothing is ever silently ignored.
"""

from itertools import permutations
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from envs.families import SETTINGS, family_of


class EnvSettings(BaseModel):
    """The real environment of a run. Exactly one of `id` and `factory` must be given.

    `None` means the default of the environment's family.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str | None = Field(
        None,
        min_length=1,
        description="gymnasium id such as ALE/Pong-v5 or MinAtar/Breakout-v1, or module:Id, "
        "where importing the module registers the id",
    )
    factory: str | None = Field(
        None,
        pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$",
        description="pkg.module.fn, called with kwargs; returns a gymnasium.Env",
    )
    kwargs: dict[str, Any] = Field(
        default_factory=dict, description="passed to the environment's constructor or the factory"
    )
    observe: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="parts of a Dict or Tuple observation that the agent sees, by key, such as "
        "[image, robot.speed]; one part alone is shown as it is; null: all",
    )
    image_values: int | None = Field(
        None,
        ge=2,
        le=256,
        description="values that a pixel of whole numbers takes, from the least on, where the "
        "space declares more: 11 for the symbols of MiniGrid",
    )
    max_episode_steps: int | None = Field(
        None, ge=1, description="agent steps after which an episode is truncated"
    )
    image_size: int | None = Field(
        None, ge=8, le=512, description="height and width of the observation, pixels"
    )
    grayscale: bool | None = Field(None, description="one intensity channel instead of colour")
    frame_skip: int | None = Field(
        None, ge=1, le=60, description="emulator frames per step (ALE only)"
    )
    sticky_actions: float | None = Field(
        None, ge=0.0, lt=1.0, description="probability that the previous action is repeated"
    )
    noop_max: int | None = Field(
        None, ge=0, description="most idle frames at the start of an episode (ALE only)"
    )
    action_bound: float = Field(
        1.0,
        gt=0.0,
        lt=1e9,
        description="where the numbers of an action are taken to end if their Box has no finite "
        "bounds: from -action_bound to action_bound",
    )
    step_timeout_s: float | None = Field(
        None,
        gt=0,
        description="a step or reset that takes longer counts as a crash; needs "
        "collect.vector=subprocess",
    )
    ram: bool = Field(
        False,
        description="keep the console's memory with every frame, as labels for measuring; no model "
        "or policy ever sees it",
    )

    @field_validator("observe")
    @classmethod
    def _each_once(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        """Refuse a part that is named twice, or within another."""
        for one, other in permutations(names or (), 2):
            if f"{other}.".startswith(f"{one}."):
                raise ValueError(f"expected parts that do not overlap, got {one} and {other}")
        return names

    @field_validator(*SETTINGS, mode="after")
    @classmethod
    def _must_apply(cls, value: object, info: ValidationInfo) -> object:
        """Refuse a value that the family of the chosen environment cannot honour."""
        name = info.field_name or ""
        if value == cls.model_fields[name].default or "id" not in info.data:
            return value  # nothing is asked for, or a bad id, which is reported on its own
        env_id = info.data["id"]
        known = family_of(env_id).defaults
        if name not in known:
            raise ValueError(
                f"expected a setting that {env_id or 'a factory'} can honour "
                f"({', '.join(known)}), got {name}={value!r}; remove it, or build the "
                f"environment with it in env.kwargs or an env.factory of your own"
            )
        return value

    @model_validator(mode="after")
    def _exactly_one_source(self) -> Self:
        """Refuse both, or neither, of id and factory."""
        if (self.id is None) == (self.factory is None):
            raise ValueError(
                f"expected exactly one of id and factory, got id={self.id!r} "
                f"and factory={self.factory!r}; set the other to null"
            )
        return self

    @property
    def name(self) -> str:
        """The id or the factory's dotted name, for messages, reports and run folders."""
        return self.id or self.factory or ""

    def applied(self) -> dict[str, Any]:
        """Every setting that the family takes, with its default where none is given."""
        defaults = family_of(self.id).defaults
        given = {name: getattr(self, name) for name in defaults}
        return {**defaults, **{name: v for name, v in given.items() if v is not None}}
