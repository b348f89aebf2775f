"""The arms of the flow study: flows that differ in a few settings and in nothing else.

The main ones carry the claim: no sharing, the talk's sharing of one coupling network by all steps
of a level, and NanoFlow's remedy for what that loses. How activations are kept for the backward
pass is no arm: it changes no number that is learnt, and is measured for every arm by `cost.py`.
"""

from functools import partial

from mbrl.studies.arms import Arm

_arm = partial(Arm, budget=(20.0, 20.0))


def _sharing(mode: str, *more: str) -> tuple[str, ...]:
    return (f"flow.sharing={mode}", *more)


DEFAULT = "level+film+proj"
SHARED = ("flow.steps=32", "flow.width=64")
"""What all arms begin with: Glow's K, and a width that one core can train in the budget."""
REFERENCE = "none"
"""The arm that the others are compared with."""

ARMS: dict[str, Arm] = {
    "none": _arm(
        "no sharing", _sharing("none"), main=True, note="Glow: a coupling network for every step"
    ),
    "level": _arm(
        "by level", _sharing("level"), main=True, note="the talk's: one network for each level"
    ),
    "level+film+proj": _arm(
        "by level, FiLM and projection",
        _sharing(DEFAULT),
        main=True,
        note="NanoFlow's: gains, shifts and a last layer for each step",
    ),
    "level+film": _arm("by level, FiLM", _sharing("level+film")),
    "global": _arm("by all levels", _sharing("global"), note="one network for all levels"),
    "additive": _arm("additive coupling", _sharing(DEFAULT, "flow.coupling=additive")),
    "realnvp": _arm(
        "RealNVP", _sharing("none", "flow.variant=realnvp"), note="masks instead of 1 x 1"
    ),
    "grid": _arm(
        "levels on an even grid",
        _sharing(DEFAULT, "flow.marginal=false"),
        note="as published: pixels do not start from their own distributions",
    ),
    "variational": _arm(
        "even grid, variational dequantisation",
        _sharing(DEFAULT, "flow.marginal=false", "flow.dequantisation=variational"),
    ),
    "few_steps": _arm("no sharing, 8 steps", _sharing("none", "flow.steps=8")),
    "narrow": _arm(
        "no sharing, a quarter of the width",
        _sharing("none", "flow.width=16"),
        note="fewer parameters by smaller networks instead of shared ones",
    ),
}
