"""The house rules of the code base: who may import whom, and what no file may contain."""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("envs", "agents", "mbrl")
MAY_IMPORT = {"envs": {"envs"}, "agents": {"agents"}, "mbrl": {"mbrl", "agents", "envs"}}
MAY_IMPORT_RAY = {
    "mbrl/train.py",
    "mbrl/actors.py",
    "mbrl/learn_model.py",
    "mbrl/compare.py",
    "agents/dream_algorithm.py",
    "agents/dream_ppo.py",
    "agents/episode_arrays.py",
    "agents/dream_learner.py",
    "agents/model_free.py",
    "agents/modules.py",
}
LONGEST = 600
# file: why it may be longer
MAY_BE_LONGER: dict[str, str] = {}
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """Full dotted names, imports inside functions and under TYPE_CHECKING included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            yield node.module or ""


TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
ROOTS = {p: {name.split(".")[0] for name in imported_modules(t)} for p, t in TREES.items()}


def found(offences: dict[Path, object]) -> dict[str, object]:
    """The files that break a rule, and how."""
    return {name_of(path): offence for path, offence in offences.items() if offence}


def lines_of(
    tree: ast.AST, kind: type[ast.AST], which: Callable[..., bool] = lambda node: True
) -> list[int]:
    """Lines of the nodes of one kind that `which` picks."""
    return [node.lineno for node in ast.walk(tree) if isinstance(node, kind) and which(node)]


def test_there_is_something_to_check() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(PACKAGES)


def test_packages_import_only_downwards() -> None:
    ours = set(PACKAGES)
    allowed = {path: MAY_IMPORT[path.relative_to(ROOT).parts[0]] for path in FILES}
    assert found({path: (roots & ours) - allowed[path] for path, roots in ROOTS.items()}) == {}


def test_environments_know_neither_torch_nor_ray() -> None:
    envs = {path: roots for path, roots in ROOTS.items() if path.is_relative_to(ROOT / "envs")}
    assert found({path: roots & {"torch", "ray"} for path, roots in envs.items()}) == {}


def test_ray_stays_in_the_files_that_may_know_it() -> None:
    knowing = {name_of(path) for path, roots in ROOTS.items() if "ray" in roots}
    assert knowing - MAY_IMPORT_RAY == set()


def test_no_file_is_a_drawer_for_everything() -> None:
    drawers = {"util", "utils", "common", "helper", "helpers", "misc"}
    assert [name_of(path) for path in FILES if path.stem in drawers] == []


def test_no_file_is_longer_than_a_reader_can_hold() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    longer = {name_of(path): lines for path, lines in lengths.items() if lines > LONGEST}
    assert {name: lines for name, lines in longer.items() if name not in MAY_BE_LONGER} == {}


def test_nothing_on_disk_is_unpickled() -> None:
    picklers = {"pickle", "cloudpickle", "dill", "shelve", "joblib", "marshal"}
    assert found({path: roots & picklers for path, roots in ROOTS.items()}) == {}
    offences = {p: lines_of(tree, ast.Call, may_unpickle) for p, tree in TREES.items()}
    assert found(offences) == {}


def may_unpickle(call: ast.Call) -> bool:
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    unpickles = keywords.get("allow_pickle", "False") != "False"
    return unpickles or ast.unparse(call.func) == "torch.load"


def test_product_code_raises_and_does_not_assert() -> None:
    assert found({path: lines_of(tree, ast.Assert) for path, tree in TREES.items()}) == {}


def test_every_module_says_why_it_exists() -> None:
    assert [name_of(path) for path, tree in TREES.items() if not ast.get_docstring(tree)] == []


def test_checking_a_config_loads_neither_torch_nor_ray() -> None:
    code = (
        "import sys, mbrl.config.schema; print({'torch', 'ray', 'tensorflow'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
