"""Reverie: train agents inside a learned world model. Start reading at `mbrl/train.py`.

Importing the package only checks that the import names `agents` and `envs`, which other projects
use too, lead to ours; nothing heavy is loaded.
"""

from importlib.util import find_spec
from pathlib import Path

__version__ = "0.1.0"


def _check_siblings() -> None:
    home = Path(__file__).resolve().parent.parent
    for name in ("agents", "envs"):
        spec = find_spec(name)
        if spec is None:
            raise ImportError(
                f"expected the package `{name}` beside mbrl in {home}, found none: reinstall with "
                "`pip install --force-reinstall --no-deps reverie-rl`, or run from the checkout"
            )
        places = [Path(p).resolve() for p in spec.submodule_search_locations or ()]
        if home / name not in places:
            found = places[0] if places else spec.origin
            raise ImportError(
                f"expected the package `{name}` beside mbrl in {home}, found {found}: another "
                f"project has that import name (`agents` is openai-agents, `envs` is often a "
                "folder of one's own). Use an environment of its own for reverie-rl, or run "
                f"from a folder without a `{name}` package"
            )


_check_siblings()
