"""The house rules of the code base: who may import whom, and what no file may contain."""

import ast
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("envs", "agents", "mbrl")
MAY_IMPORT = {"envs": {"envs"}, "agents": {"agents"}, "mbrl": {"mbrl", "agents", "envs"}}
MAY_IMPORT_RAY = (
    "mbrl/cluster.py",
    "mbrl/actors.py",
    "mbrl/learn_model.py",
    "agents/dream_ppo.py",
    "agents/dream_learner.py",
    "agents/dream_q.py",
    "agents/model_free.py",
    "agents/modules.py",
    "agents/state.py",
    "agents/baselines/",  # stock algorithms of RLlib, a file for each
)
LONGEST_FUNCTION, LONGEST_FILE = 60, 600
# file, or file:function, and why it may be longer
MAY_BE_LONGER: dict[str, str] = {}
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    return name_of(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


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
MODULES = {module_of(path) for path in FILES}


def our_modules(nodes: Iterable[ast.AST]) -> set[str]:
    """Modules of ours that these import statements name."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # a submodule that is imported by its name, or else the package that has the name
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {full if full in MODULES else str(node.module) for full in inside}
    return found & MODULES


def circle(edges: dict[str, set[str]]) -> list[str]:
    """One circle of modules that import each other, the first named twice; empty without any."""
    done: set[str] = set()

    def walk(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module not in done:
            for following in sorted(edges[module]):
                if around := walk(following, [*path, module]):
                    return around
            done.add(module)
        return []

    return next((around for module in sorted(edges) if (around := walk(module, []))), [])


def found(offences: dict[Path, object]) -> dict[str, object]:
    """The files that break a rule, and how."""
    return {name_of(path): offence for path, offence in offences.items() if offence}


def lines_of(
    tree: ast.AST, kind: type[ast.AST], which: Callable[..., bool] = lambda node: True
) -> list[int]:
    """Lines of the nodes of one kind that `which` picks."""
    return [node.lineno for node in ast.walk(tree) if isinstance(node, kind) and which(node)]


def test_packages_import_only_downwards() -> None:
    ours = set(PACKAGES)
    allowed = {path: MAY_IMPORT[path.relative_to(ROOT).parts[0]] for path in FILES}
    assert found({path: (roots & ours) - allowed[path] for path, roots in ROOTS.items()}) == {}


def test_environments_know_neither_torch_nor_ray() -> None:
    envs = {path: roots for path, roots in ROOTS.items() if path.is_relative_to(ROOT / "envs")}
    assert found({path: roots & {"torch", "ray"} for path, roots in envs.items()}) == {}


def test_ray_stays_in_the_files_that_may_know_it() -> None:
    knowing = {name_of(path) for path, roots in ROOTS.items() if "ray" in roots}
    assert {name for name in knowing if not name.startswith(MAY_IMPORT_RAY)} == set()


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Neither when they are loaded, nor later inside a function, nor for their types only."""
    edges = {module_of(path): our_modules(ast.walk(tree)) for path, tree in TREES.items()}
    assert " -> ".join(circle(edges)) == ""


def test_studies_are_imported_by_nobody_but_the_command_line_when_one_is_asked_for() -> None:
    offences = {}
    for path, tree in TREES.items():
        if not name_of(path).startswith("mbrl/studies/"):
            loaded = tree.body if name_of(path) == "mbrl/__main__.py" else ast.walk(tree)
            names = sorted(n for n in our_modules(loaded) if n.startswith("mbrl.studies"))
            offences |= {name_of(path): names} if names else {}
    assert offences == {}


def test_no_file_is_a_drawer_for_everything() -> None:
    drawers = {"util", "utils", "common", "helper", "helpers", "misc"}
    assert [name_of(path) for path in FILES if path.stem in drawers] == []


def test_no_file_and_no_function_is_longer_than_a_reader_can_hold() -> None:
    longer = {}
    for path, tree in TREES.items():
        name, lines = name_of(path), len(path.read_text(encoding="utf-8").splitlines())
        longer |= {name: lines} if lines > LONGEST_FILE else {}
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                longer |= {f"{name}:{node.name}": lines} if lines > LONGEST_FUNCTION else {}
    assert {name: lines for name, lines in longer.items() if name not in MAY_BE_LONGER} == {}
    assert MAY_BE_LONGER.keys() <= longer.keys(), "an exception that is no longer needed"


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
