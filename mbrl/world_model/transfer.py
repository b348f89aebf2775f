"""What one world model takes over from another: every part that fits.

An environment with another reward, another level or other actions moves much as the last one did.
A part is a module with weights of its own, such as `dynamics.look` or `heads.out`; it fits where
all its tensors have the names, shapes and dtypes of the other's. Parts that do not fit keep their
first weights as a whole: half of a part is of no use.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from mbrl.errors import ConfigError


@dataclass(frozen=True)
class Taken:
    """Names of parts.

    Attributes:
        fitting: they are taken over.
        other: they are in both models, and differ in shape.
        asked: they fit, and start anew since the settings say so.
        new: the other model has none of that name.
    """

    fitting: tuple[str, ...]
    other: tuple[str, ...]
    asked: tuple[str, ...]
    new: tuple[str, ...]

    def __str__(self) -> str:
        said = [f"{len(self.fitting)} parts are taken over"]
        for names, why in (
            (self.other, "of another shape"),
            (self.new, "not in that model"),
            (self.asked, "by world_model.init_anew"),
        ):
            if names:
                said.append(f"{', '.join(names)} start anew ({why})")
        return "; ".join(said)


def take_over(model: nn.Module, weights: Mapping[str, Tensor], anew: Iterable[str] = ()) -> Taken:
    """Load what fits of another model's `weights`, but for parts whose names begin with `anew`.

    Raises:
        ConfigError: nothing is taken over, or a name of `anew` is of no part.
    """
    own, theirs = _parts(model.state_dict()), _parts(weights)
    for name in anew:
        if not any(_within(part, name) for part in own):
            known = sorted({part.split(".")[0] for part in own})
            raise ConfigError(
                f"world_model.init_anew: expected names of parts, such as {', '.join(known)}, got "
                f"{name}"
            )
    sorts: dict[str, list[str]] = {"fitting": [], "other": [], "asked": [], "new": []}
    for part, tensors in own.items():
        sorts[_sort(part, tensors, theirs, anew)].append(part)
    taken = Taken(**{sort: tuple(parts) for sort, parts in sorts.items()})
    if not taken.fitting:
        raise ConfigError(
            "world_model.init_from: expected a model with parts that fit this one, got none; "
            "choose the same world_model.layout and sizes"
        )
    model.load_state_dict(
        {f"{part}.{name}": t for part in taken.fitting for name, t in theirs[part].items()},
        strict=False,
    )
    return taken


def _sort(
    part: str, tensors: dict[str, Tensor], theirs: dict[str, dict[str, Tensor]], anew: Iterable[str]
) -> str:
    """Which of the lists of `Taken` a part belongs in."""
    if part not in theirs:
        return "new"
    shapes = [
        {name: (t.shape, t.dtype) for name, t in one.items()} for one in (tensors, theirs[part])
    ]
    if shapes[0] != shapes[1]:
        return "other"
    return "asked" if any(_within(part, name) for name in anew) else "fitting"


def _within(part: str, name: str) -> bool:
    return part == name or part.startswith(f"{name}.")


def _parts(weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Tensors by their part and their name in it."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights.items():
        part, _, last = name.rpartition(".")
        parts.setdefault(part, {})[last] = tensor
    return parts
