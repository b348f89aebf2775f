"""The arms: world models that differ in their layout or prior, and the flat one in its step size.

An arm is a title and overrides on `configs/minatar.yaml`, never code (see `studies.arms`).
"""

from mbrl.studies.arms import Arm

# a number of updates ends a run; so many minutes only bound it
_LONG_ENOUGH = (600.0, 600.0)

GRID = "world_model.layout=grid"
FLAT = (
    "world_model.layout=flat",
    "learn_model.lr=0.001",  # as in configs/minatar_flat.yaml; the grid takes larger steps
    "learn_model.halve_after=null",
    "learn_model.batch_size=32",
)
ARMS: dict[str, Arm] = {
    "grid": Arm(
        "grid, joint prior",
        (GRID, "world_model.grid.prior=joint"),
        main=True,
        note="code and state are maps; the cells are drawn given each other",
        budget=_LONG_ENOUGH,
    ),
    "flat": Arm(
        "flat",
        FLAT,
        main=True,
        note="the control: code and state are vectors",
        budget=_LONG_ENOUGH,
    ),
    "grid_independent": Arm(
        "grid, independent prior",
        (GRID, "world_model.grid.prior=independent"),
        main=True,
        note="the control of the joint prior: every cell is drawn by itself",
        budget=_LONG_ENOUGH,
    ),
}
