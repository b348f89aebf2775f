"""What can go wrong for a user, one class per room.

Every message says what was expected, what came, and the way out. Programming errors inside the
framework stay ordinary exceptions; these are for bad input, bad data and lost processes, and the
command line prints them without a traceback.
"""


class MbrlError(Exception):
    """Base of everything the framework raises on purpose."""


class Stopped(Exception):
    """No error: work was left half done because the run was asked to stop, and has no result."""


class ConfigError(MbrlError):
    """A setting is unknown, of the wrong type, out of range, or contradicts another."""


class DiskError(MbrlError):
    """A file cannot be written: the disk is full, or refuses."""


class ReplayError(MbrlError):
    """Replay cannot be read, written or sampled as asked."""


class CheckpointError(MbrlError):
    """A checkpoint is missing, incomplete or belongs to another configuration."""


class CollectError(MbrlError):
    """The real environment keeps failing or returns values that cannot be stored."""


class TrainingError(MbrlError):
    """Learning cannot go on (for example a loss that is not finite)."""
