"""EnvError, the one error of this room, and how an accident of someone else's code is told.

`envs` may not import `mbrl` and its error classes.
"""

import traceback
from pathlib import Path


class EnvError(RuntimeError):
    """An environment cannot be made, breaks its contract, or keeps crashing.

    The message says what was expected, what came, and the way out.
    """


def told(error: BaseException) -> str:
    """An error in one line: its class and reason, or, if it gives none, where it was raised."""
    kind, reason = type(error).__name__, " ".join(str(error).split())
    if reason:
        return f"{kind}: {reason}"
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return f"{kind} without a reason"
    last = frames[-1]
    return f"{kind} without a reason, at {Path(last.filename).name}:{last.lineno}: {last.line}"
