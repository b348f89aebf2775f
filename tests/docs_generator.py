"""`docs/generate.py` as a module: it is a script, and in no package."""

import importlib.util
from pathlib import Path
from types import ModuleType

_PATH = Path(__file__).resolve().parent.parent / "docs" / "generate.py"


def load_generator() -> ModuleType:
    """A fresh copy of it, whose paths a test may change."""
    spec = importlib.util.spec_from_file_location("generate", _PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
