"""Where agents act: real environments, made from settings, all with one face.

In: `EnvSettings`. Out: a `gymnasium.Env` whose images are (H, W, C), or a `VectorEnv` of several.
Any gymnasium id, `module:Id` or factory works; a few families get a documented preprocessing. This
package refuses to know about learning: it imports gymnasium and numpy, never torch or Ray.

To add a family: one file with a `FAMILY`, one line in `families.FAMILIES`. An environment that
needs no preprocessing of ours needs no change here: name its id or a factory. `contract.check_env`
says what is wrong with an environment, and what Reverie cannot handle.
"""

from envs.errors import EnvError
from envs.make import make_env
from envs.settings import EnvSettings
from envs.vector import VectorEnv, VectorStep

__all__ = ["EnvError", "EnvSettings", "VectorEnv", "VectorStep", "make_env"]
