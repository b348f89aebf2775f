"""The documentation is a promise: what it shows is run here, what it names is looked up."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from docs_generator import load_generator
from PIL import Image

from envs.settings import EnvSettings
from mbrl.__main__ import _parser
from mbrl.config import file as config_file
from mbrl.config.file import find_config
from mbrl.config.schema import Config, load
from mbrl.report.video import write_video
from mbrl.studies.fidelity import arms as fidelity_arms
from mbrl.studies.flows import arms as flow_arms
from mbrl.studies.flows.settings import FlowStudySettings

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PAGES}
README = TEXTS["README.md"]


generate = load_generator()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


# What is generated


def test_generated_pages_are_up_to_date() -> None:
    assert generate.stale() == [], "run `python docs/generate.py` and commit what changes"


def test_every_setting_says_what_it_means() -> None:
    silent = {
        f"{name}.{key}".lstrip(".")
        for name, model in generate.settings_page.sections(Config)
        for key, field in generate.settings_page.settings(model).items()
        if not field.description
    }
    assert silent == set()


def test_every_setting_is_on_the_page() -> None:
    config = Config(env=EnvSettings(id="MinAtar/Breakout-v1"))

    def names(tree: dict[str, Any], at: str = "") -> list[str]:
        nested = [(f"{at}{key}", value) for key, value in tree.items()]
        return [
            name
            for key, value in nested
            for name in (
                names(value, f"{key}.") if isinstance(value, dict) and value else [key]
            )
        ]  # fmt: skip

    page = TEXTS["docs/configuration.md"]
    assert [n for n in names(config.model_dump()) if f"| `{n}` |" not in page] == []


def test_types_and_defaults_are_written_as_in_yaml() -> None:
    page = TEXTS["docs/configuration.md"]
    for row in (
        "| `env_steps` | integer ≥ 1 | `10000` |",
        "| `policy.gamma` | number > 0, ≤ 1 | `0.99` |",
        "| `policy.hidden` | list of integers | `[128, 128]` |",
        "| `run.dir` | path | `null` |",
        "| `run.video` | true or false | `true` |",
        "| `agent` | `dream`, `ppo`, `dqn`, `random` | `dream` |",
    ):
        assert row in page


def result(**changes: Any) -> dict[str, Any]:
    seed = {"wall_time_s": 90.0, "final": {"episodes": 50}}
    agents = {
        "dream": {"returns": [3.0, 4.0], "iqm": 3.5, "ci95": [3.0, 4.0], "seeds": {"0": seed}},
        "ppo": {"returns": [1.0, 1.5], "iqm": 1.25, "ci95": [1.0, 1.5], "seeds": {"0": seed}},
    }
    ratio = {"threshold": 1.25, "against": "ppo", "value": 4.0, "ci95": [3, 5], "at_least": False}
    whole = {
        "env_id": "MinAtar/Breakout-v1",
        "env_steps": 4096,
        "agents": agents,
        "steps_ratio": ratio,
        "command": "mbrl compare quickstart",
        "commit": "0123456789abcdef",
        "machine": {"cores": 2, "cpu": "a processor"},
    }
    return {**whole, **changes}


def test_results_table_holds_what_the_file_says() -> None:
    table = generate.results_table(result())
    assert "| dream | 3.50 | 3.00 to 4.00 | 3.00, 4.00 | 1.5 min |" in table
    assert "| ppo | 1.25 | 1.00 to 1.50 | 1.00, 1.50 | 1.5 min |" in table
    assert "4,096 real environment steps" in table
    assert "50 episodes each" in table
    assert "`ppo` needs 4.0 times as many" in table
    assert "(95 % interval 3.0 to 5.0)" in table
    assert "`mbrl compare quickstart`; commit `0123456789ab`; 2 cores, a processor" in table


def test_results_table_does_not_hide_a_single_seed() -> None:
    alone = {"dream": {"returns": [3.0], "iqm": 3.0, "ci95": [3.0, 3.0]}}
    assert "| dream | 3.00 | one seed | 3.00 | – |" in generate.results_table(
        result(agents=alone, steps_ratio=None)
    )


def test_results_table_says_when_the_first_agent_falls_short() -> None:
    ratio = {"threshold": 5.0, "against": "ppo", "value": None, "ci95": None, "at_least": False}
    table = generate.results_table(result(steps_ratio=ratio))
    assert "`dream` did not reach a mean return of 5.00, where `ppo` ends." in table


def test_readme_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="expected the marks"):
        generate.readme("no marks here")


def test_gif_shows_the_newest_dream(tmp_path: Path) -> None:
    for steps, level in ((512, 40), (1024, 200)):
        frames = np.full((3, 64, 64, 3), level, np.uint8)
        frames[1] += 48
        write_video(tmp_path / "videos" / f"dream-{steps:09d}.mp4", frames, fps=5)
    video = generate.newest_video(tmp_path)
    assert video.name == "dream-000001024.mp4"
    with Image.open(generate.write_gif(video, tmp_path / "dream.gif")) as image:
        assert (image.size, image.n_frames, image.info["duration"]) == ((64, 64), 3, 200)
        assert abs(np.asarray(image.convert("RGB")).astype(int) - 200).max() <= 16


def test_run_without_a_video_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected a run folder with videos"):
        generate.newest_video(tmp_path)


# What is shown


def test_readme_environment_works_in_check_and_training(tmp_path: Path) -> None:
    [code] = blocks(README, "python")
    [config] = blocks(README, "yaml")
    (tmp_path / "catch.py").write_text(code)
    (tmp_path / "catch.yaml").write_text(config)
    small = [
        *("env_steps=64", "collect.prefill_steps=32", "collect.steps_per_iteration=32"),
        *("learn_model.batch_size=4", "learn_model.train_ratio=4", "policy.dreams=16"),
        *("learn_policy.dream_ratio=10", "evaluate.final_episodes=2", "run.video=false"),
        *("run.tensorboard=false", "world_model.bf16=false"),
    ]

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "mbrl", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "verdict      ready" in run("check-env", "catch:Catch-v0", "--steps", "50")
    assert "dream on catch:Catch-v0: return" in run("train", "catch.yaml", *small)
    said = json.loads((tmp_path / "runs" / "catch" / "result.json").read_text())
    assert said["env_steps"] == 64


def shown_commands() -> list[str]:
    """Every `mbrl …` command on the pages, one line each, without placeholders."""
    found = set()
    for text in TEXTS.values():
        text = text.replace("\\\n", " ")
        spans = re.findall(r"`([^`\n]+)`", text)
        lines = [line for block in blocks(text, r"\w*") for line in block.splitlines()]
        for line in (*spans, *lines):
            match = re.search(
                r"\bmbrl (train|compare|check-env|replay stats|bench (?:fidelity|flow)) [^#]*", line
            )
            if match and not re.search(r"\b(CONFIG|ID|DIR|N|GAME)\b|…", match[0]):
                found.add(" ".join(match[0].replace("$PWD", "/folder").split()))
    return sorted(found)


def test_commands_are_found() -> None:
    assert len(shown_commands()) >= 8


@pytest.mark.parametrize("command", shown_commands())
def test_shown_command_is_understood(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    options = _parser().parse_args(shlex.split(command)[1:])
    if options.command in ("train", "compare") and options.config != "catch.yaml":
        load(find_config(options.config), options.overrides)
    if options.command == "bench" and options.study == "flow":
        flow_arms.choose(options.arms)
        settings = [word for word in options.words if "=" in word]
        config_file.load(FlowStudySettings, overrides=settings)
    elif options.command == "bench":
        fidelity_arms.choose(options.arms)
        load(find_config("fidelity"), options.overrides)


def test_yaml_blocks_are_yaml() -> None:
    for text in TEXTS.values():
        for block in blocks(text, "yaml"):
            for line_or_block in [block] if "\n  " in block else block.splitlines():
                yaml.safe_load(line_or_block)


# What is named


def heading_anchors(text: str) -> set[str]:
    """Anchors as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere(page: str) -> None:
    folder = (ROOT / page).parent
    for link in re.findall(r"\]\(([^)\s]+)\)", TEXTS[page]):
        target, _, anchor = link.partition("#")
        if link.startswith(("http://", "https://")):
            continue
        path = (folder / target).resolve() if target else ROOT / page
        assert path.exists(), f"{page}: {link}"
        if anchor:
            assert anchor in heading_anchors(path.read_text(encoding="utf-8")), f"{page}: {link}"


@pytest.mark.parametrize("page", TEXTS)
def test_named_files_exist(page: str) -> None:
    pattern = r"`((?:mbrl|agents|envs|configs|docs|tests|benchmarks)/[\w/.]*\.\w+)[`:]"
    assert [name for name in re.findall(pattern, TEXTS[page]) if not (ROOT / name).exists()] == []


def string_constants() -> str:
    """All text in our code, literals that Python joins joined."""
    files = [p for package in ("mbrl", "agents", "envs") for p in (ROOT / package).rglob("*.py")]
    texts = []
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [str(p.value) if isinstance(p, ast.Constant) else "…" for p in node.values]
                texts.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


NOT_OURS = ("Unauthorized", "Token authentication", "unrecognized", "gymnasium[box2d]")


def test_troubleshooting_quotes_messages_that_exist() -> None:
    section = README.partition("## When it fails")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`+)(.+?)\1", section, re.MULTILINE)
    ours = [message for _, message in rows if not message.startswith(NOT_OURS)]
    assert len(ours) >= 6
    said = string_constants()
    for message in ours:
        for part in re.split(r"…|'\w+'|`\w+`", message):
            assert part.strip(" `:") in said, message


def test_every_results_file_can_be_traced() -> None:
    for path in (ROOT / "results").rglob("*.json"):
        assert {"command", "commit", "machine"} <= json.loads(path.read_text()).keys(), path
