"""EnvError, the one error of this room: `envs` may not import `mbrl` and its error classes."""


class EnvError(RuntimeError):
    """An environment cannot be made, breaks its contract, or keeps crashing.

    The message says what was expected, what came, and the way out.
    """
