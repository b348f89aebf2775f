import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mbrl

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {name: version for name, version in pairs}


def run_python(code: str, *first_on_path: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(map(str, [*first_on_path, ROOT]))
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        cwd="/",
    )


@pytest.mark.parametrize("file", ["agents/__init__.py", "envs/__init__.py", "envs.py"])
def test_foreign_code_of_our_name_is_refused_without_being_run(tmp_path: Path, file: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("raise RuntimeError('was imported')")
    done = run_python("import mbrl", tmp_path)
    message = done.stderr.splitlines()[-1]
    name = file.removesuffix("/__init__.py").removesuffix(".py")
    assert message.startswith(f"ImportError: expected the package `{name}` beside mbrl in {ROOT}")
    assert f"found {tmp_path / file.removesuffix('/__init__.py')}" in message
    assert "Use an environment of its own" in message


def test_folder_that_is_no_package_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "envs").mkdir()  # an ordinary folder in the working directory
    assert run_python("import mbrl", tmp_path).returncode == 0


def test_missing_sibling_is_told_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "mbrl").mkdir()
    shutil.copy(ROOT / "mbrl" / "__init__.py", tmp_path / "mbrl")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import mbrl"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True)
    assert "found none: reinstall with `pip install" in done.stderr


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = {"torch", "ray", "agents", "envs"}  # gymnasium and its numpy hear of the dreams
    code = f"import sys, mbrl; print(sorted({heavy} & sys.modules.keys()))"
    assert run_python(code).stdout.strip() == "[]"


def test_versions_are_exact_and_the_same_in_every_place() -> None:
    assert f"version: {mbrl.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert line.startswith("#") or re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line), line


def requirements() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"].values()
    return [Requirement(r) for group in (PROJECT["dependencies"], *extras) for r in group]


def test_every_requirement_is_pinned_within_its_range_and_installed_so() -> None:
    for requirement in requirements():
        pinned = pins()[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pinned), f"{requirement} but {pinned}"
    for requirement in map(Requirement, PROJECT["dependencies"]):
        name = canonicalize_name(requirement.name)
        assert metadata.version(name).split("+")[0] == pins()[name]


def test_everything_the_requirements_pull_in_is_pinned() -> None:
    """Walks the installed distributions; what is not installed here (extras) is skipped."""
    pinned = pins()
    waiting, seen, missing = requirements(), set(), set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        for extra in (requirement.extras or {""}) | {""}:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            try:
                distribution = metadata.distribution(name)
            except metadata.PackageNotFoundError:
                continue
            missing |= {name} - pinned.keys()
            needed = map(Requirement, distribution.requires or [])
            waiting += [r for r in needed if not r.marker or r.marker.evaluate({"extra": extra})]
    # torch brings its CUDA libraries only in some builds and pins them itself
    assert {n for n in missing if not n.startswith(("nvidia-", "cuda-", "triton"))} == set()


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs the repository")
def test_a_ray_job_gets_all_code_and_none_of_the_baggage() -> None:
    command = ["git", "ls-files", "--cached", "--ignored", "--exclude-from=.rayignore"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    code = ("mbrl/", "agents/", "envs/", "configs/")
    assert [name for name in done.stdout.split() if name.startswith(code)] == []
    for baggage in ("/.git/", "/.venv/", "/runs/"):
        assert baggage in (ROOT / ".rayignore").read_text().split()


def make(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "--no-print-directory", *arguments], cwd=folder, capture_output=True, text=True
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def test_install_takes_torch_first_and_alone(checkout: Path) -> None:
    lines = make("-n", "test", folder=checkout).stdout.splitlines()
    installs = [line for line in lines if " install " in line]
    assert [line.split("--constraint ")[1] for line in installs] == [
        "constraints.txt torch",
        'constraints.txt --editable ".[dev,box2d]"',
    ]


def test_install_is_skipped_until_the_requirements_change(checkout: Path) -> None:
    stamps = checkout / ".venv"
    stamps.mkdir()
    for second, name in enumerate((".created", ".torch", ".installed", ".installed-dev")):
        (stamps / name).touch()
        os.utime(stamps / name, (2_000_000_000 + second,) * 2)
    for target in ("test", "quickstart"):
        assert " install " not in make("-n", target, folder=checkout).stdout
    os.utime(checkout / "pyproject.toml", (2_000_000_100,) * 2)
    assert make("-n", "quickstart", folder=checkout).stdout.count(" install ") == 1


def test_old_python_is_refused_with_the_way_out(checkout: Path) -> None:
    old = checkout / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.2" || exit 1\n')
    old.chmod(0o755)
    done = make("test", f"PYTHON={old}", folder=checkout)
    assert done.returncode == 2
    assert "Reverie needs Python 3.11 or newer" in done.stderr
    assert "is: Python 3.9.2" in done.stderr
    assert "make PYTHON=/path/to/python3.11 test" in done.stderr


def test_continuous_integration_ends_with_the_closing_line_of_pytest(tmp_path: Path) -> None:
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci")
    lines = ["=== test session starts ===", "=== 3 passed, 1 warning in 0.12s ===", "noise at exit"]
    recipe = "".join(f"\t@echo '{line}'\n" for line in lines)
    for code in (0, 1):
        (tmp_path / "Makefile").write_text(f"test:\n{recipe}\t@exit {code}\n")
        done = subprocess.run([tmp_path / ".ci" / "run"], capture_output=True, text=True, cwd="/")
        assert done.stdout.splitlines()[-1] == "=== 3 passed, 1 warning in 0.12s ==="
        assert (done.returncode == 0) == (code == 0)


def test_provenance_traces_a_number_without_naming_the_machine() -> None:
    import socket

    from mbrl.run import provenance

    found = provenance.provenance()
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", found["commit"])
    assert found["packages"]["torch"] == metadata.version("torch")
    assert found["machine"]["cores"] >= 1
    assert 0 < found["machine"]["ram_gb"] < 100_000
    text = json.dumps(found)
    assert socket.gethostname() not in text
    assert str(Path.home()) not in text


def test_commit_is_dirty_only_when_code_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mbrl.run import provenance

    monkeypatch.setenv("MBRL_COMMIT", "sent along")
    assert provenance.commit(tmp_path) == "sent along"

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True)

    (tmp_path / "mbrl").mkdir()
    (tmp_path / "mbrl" / "a.py").write_text("a = 1\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    clean = provenance.commit(tmp_path)
    assert re.fullmatch(r"[0-9a-f]{40}", clean)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "new.json").write_text("{}")
    assert provenance.commit(tmp_path) == clean
    (tmp_path / "mbrl" / "a.py").write_text("a = 2\n")
    assert provenance.commit(tmp_path) == f"{clean}-dirty"
    # somebody else's repository around an installed package
    assert provenance.commit(tmp_path / "mbrl") == "sent along"
