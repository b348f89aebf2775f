"""When work is due: by counts of environment steps, never by a clock.

`Ratio` turns collected steps into lots of work, `Every` says when a boundary was passed. A result
therefore does not depend on how fast the machine is. Both are one number to save and go on from.
"""


class Ratio:
    """So much work for every environment step, done in whole lots; what is left over is credit."""

    def __init__(self, per_step: float, lot: int) -> None:
        self.per_step, self.lot = per_step, lot
        self._credit = 0.0

    def due(self, steps: int, at_least: int = 0) -> int:
        """Lots to do now for `steps` more steps; with `at_least` the credit may be negative."""
        self._credit += self.per_step * steps
        lots = max(at_least, int(self._credit // self.lot))
        self._credit -= lots * self.lot
        return lots

    def state_dict(self) -> float:
        """The credit, in units of work."""
        return self._credit

    def load_state_dict(self, state: float) -> None:
        """Go on from a credit."""
        self._credit = state


class Every:
    """A boundary at each multiple of `every` environment steps, counted from `last` on."""

    def __init__(self, every: int, last: int = 0) -> None:
        self.every, self._last = every, last

    def due(self, env_steps: int) -> bool:
        """Whether a boundary lies between the last `done` and these steps."""
        return env_steps // self.every > self._last // self.every

    def done(self, env_steps: int) -> None:
        """What was due has been done at these steps."""
        self._last = env_steps

    def next(self, env_steps: int) -> int:
        """The first boundary after these steps."""
        return (env_steps // self.every + 1) * self.every

    def state_dict(self) -> int:
        """The steps of the last `done`."""
        return self._last

    def load_state_dict(self, state: int) -> None:
        """Go on from there."""
        self._last = state
