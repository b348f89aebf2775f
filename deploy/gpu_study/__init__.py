"""ALE Boxing, Pong and Breakout on one rented GPU machine without a network, in well under an hour.

`wheels` packs every dependency but torch, where there is a network; `install` unpacks them beside
the machine's own torch; `device` looks at the card; `study` trains the three games side by side,
stops in time and goes on in the next call. All of it but `device` needs the standard library alone,
because on the rented machine nothing is installed when it begins.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The checkout."""


class StudyError(Exception):
    """Something that the reader can put right; the message says how."""
