"""Settings of the flow study: the flow and how it is trained; imports nothing heavy."""

from typing import Literal

from pydantic import Field

from mbrl.config.settings import Settings
from mbrl.world_model.settings import FlowSettings


class TrainSettings(Settings):
    """How a flow is trained."""

    batch_size: int = Field(16, ge=1, description="images of an update")
    optimizer: Literal["adam", "adamax"] = Field(
        "adamax", description="Glow was trained with Adamax"
    )
    lr: float = Field(0.002, gt=0, description="learning rate after the warm-up")
    warmup_updates: int = Field(100, ge=0, description="updates over which it grows from 0")
    clip: float = Field(
        1.0, gt=0, description="largest norm of the gradient of bits per dimension; longer is cut"
    )
    bf16: bool = Field(
        False, description="run the coupling networks in bfloat16 where the device has it"
    )


class FlowStudySettings(Settings):
    """All settings of a trial."""

    flow: FlowSettings = FlowSettings()
    train: TrainSettings = TrainSettings()
