"""Arms of a study: variants of one thing that differ in a few settings and in nothing else.

An arm is a title and overrides, never code. *Main* arms carry the claim and get three seeds; the
others are variants and ablations with one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mbrl.errors import ConfigError


@dataclass(frozen=True)
class Arm:
    """One variant.

    Attributes:
        title: for tables and figures.
        overrides: `key=value` settings on top of what all arms share.
        note: what it is there to show.
        budget: CPU minutes of training per run of a main arm, and of another one.
        retired: why it cannot be made any more; its results stay in the tables.
    """

    title: str
    overrides: tuple[str, ...] = ()
    main: bool = False
    note: str = ""
    budget: tuple[float, float] = (30.0, 15.0)
    retired: str = ""

    @property
    def seeds(self) -> int:
        """Runs with different seeds, if the command does not say."""
        return 3 if self.main else 1

    @property
    def minutes(self) -> float:
        """CPU minutes of training per run, if the command does not say."""
        return self.budget[0] if self.main else self.budget[1]


def choose(names: str, arms: Mapping[str, Arm]) -> list[str]:
    """The arms of `--arms`: "main", "all" or names with commas between.

    Raises:
        ConfigError: a name is unknown, given twice, or of a retired arm.
    """
    known = [name for name, arm in arms.items() if not arm.retired]
    if names == "all":
        return known
    if names == "main":
        return [name for name in known if arms[name].main]
    chosen = [name.strip() for name in names.split(",")]
    for name in chosen:
        if name in arms and (why := arms[name].retired):
            raise ConfigError(f"--arms: expected an arm that can be trained, got {name}: {why}")
    if set(chosen) - set(known) or len(set(chosen)) != len(chosen):
        raise ConfigError(
            f"--arms: expected main, all or distinct names out of {', '.join(known)}; "
            f"got {names or 'nothing'}"
        )
    return chosen


def in_order(
    names: Sequence[str], arms: Mapping[str, Arm], seeds: int | None
) -> Iterator[tuple[str, int]]:
    """Names and seeds in the order in which they are worth most if a study is stopped.

    Main arms come first, every one of them with seed 0 before any with seed 1. The seeds are
    0 .. seeds - 1; None stands for each arm's own number.
    """
    order = [
        (not arms[name].main, seed, place, name)
        for place, name in enumerate(names)
        for seed in range(seeds or arms[name].seeds)
    ]
    yield from ((name, seed) for _, seed, _, name in sorted(order))


def listed(arms: Mapping[str, Arm]) -> str:
    """Every arm with its runs, title and note, for `--help`."""
    lines = [
        f"  {name:<28} {'main ' if arm.main else '     '}{arm.seeds} x {arm.minutes:g} min  "
        f"{arm.title}{f' ({arm.note})' if arm.note else ''}"
        for name, arm in arms.items()
        if not arm.retired
    ]
    return "\n".join(["arms, with seeds and CPU minutes if the command does not say:", *lines])
