"""The documentation is a promise: what it shows is run here, what it names is looked up."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import mbrl
from envs.settings import EnvSettings
from mbrl.__main__ import _parser
from mbrl.compare import Arm, _arms, fitting
from mbrl.config import file as config_file
from mbrl.config.file import find_config
from mbrl.config.schema import Config, load
from mbrl.report.video import write_video
from mbrl.studies.arms import choose
from mbrl.studies.bench import study_of
from mbrl.studies.flows.trial import FlowStudySettings
from mbrl.studies.worlds.listed import WORLDS

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs"))  # scripts, in no package
import generate  # noqa: E402

PAGES = [*ROOT.glob("[A-Z]*.md"), *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PAGES}
README = TEXTS["README.md"]


def blocks(text: str, language: str) -> list[str]:
    """Code blocks of a page that are not marked as not run."""
    return re.findall(rf"(?<!-->\n\n)^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def leaves(tree: Any, at: str = "") -> list[str]:
    """Dotted names of all settings."""
    if not isinstance(tree, dict) or not tree:
        return [at]
    return [n for key, value in tree.items() for n in leaves(value, f"{at}.{key}".lstrip("."))]


# What is generated


def test_generated_pages_are_up_to_date_and_show_every_example() -> None:
    assert generate.stale() == [], "run `python docs/generate.py` and commit what changes"
    for path in (ROOT / "tests" / "extending").glob("[a-z]*.py"):
        assert path.read_text(encoding="utf-8").strip() in TEXTS["docs/extending.md"], path


def test_every_setting_is_on_its_page_and_says_what_it_means() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \|.*\| (.*) \|$", TEXTS["docs/configuration.md"], re.M)
    settings = leaves(Config(env=EnvSettings(id="MinAtar/Breakout-v1")).model_dump())
    assert [name for name in settings if not dict(rows).get(name, "").strip()] == []


def test_readme_is_short_and_tables_of_results_are_narrow() -> None:
    assert len(README.split()) <= 1200
    for page in ("docs/fidelity.md", "docs/flows.md"):
        rows = re.findall(r"^\|.*\|$", TEXTS[page], re.MULTILINE)
        assert rows and max(row.count(" | ") + 1 for row in rows) <= 8


SEED = {"wall_time_s": 90.0, "final": {"episodes": 50}}
RESULT = {
    "env_id": "MinAtar/Breakout-v1",
    "env_steps": 4096,
    "agents": {
        "dream": {"returns": [3.0, 4.0], "iqm": 3.5, "ci95": [3.0, 4.0], "seeds": {"0": SEED}},
        "ppo": {"returns": [1.0], "iqm": 1.0, "ci95": [1.0, 1.0]},
    },
    "command": "mbrl compare quickstart",
    "commit": "0123456789abcdef",
    "machine": {"cores": 2, "cpu": "a processor"},
}
RATIO = {"threshold": 1.25, "against": "ppo", "value": 4.0, "ci95": [3, 5], "at_least": False}


def test_results_table_says_what_the_file_says_and_does_not_hide_a_single_seed() -> None:
    table = generate.results_table({**RESULT, "steps_ratio": RATIO})
    assert "after 4,096 real environment steps" in table and "50 episodes each" in table
    assert "| dream | 3.50 | 3.00 to 4.00 | 3.00, 4.00 | 1.5 min |" in table
    assert "| ppo | 1.00 | one seed | 1.00 | – |" in table
    assert "4.0 times as many environment steps as `dream` (95 % interval 3.0 to 5.0)" in table
    assert "`mbrl compare quickstart`; commit `0123456789ab`; 2 cores, a processor" in table
    assert generate.results_table({**RESULT, "sentence": "It is so."}).count("It is so.") == 1
    short = generate.results_table({**RESULT, "steps_ratio": {**RATIO, "value": None}})
    assert "`dream` did not reach a mean return of 1.25, where `ppo` ends." in short


def test_a_measure_is_written_as_its_lowest_and_highest_seed() -> None:
    measure = generate.template_pages.Measure
    assert str(measure((0.909, 0.872, 0.881))) == "0.87–0.91"
    assert str(measure((0.998, 0.996))) == "1.00"
    assert measure((9072.0, 7440.0)).digits(0) == "7,440–9,072"
    assert measure((0.5, 0.75)).spread == "0.25"


def test_a_page_without_marks_or_with_a_missing_measure_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected the marks"):
        generate.readme("no marks here")
    (tmp_path / "page.md.j2").write_text("{{ pong.pixelcnn.ball_recal }}")
    with pytest.raises(ValueError, match="pong/pixelcnn/ball_recal: no such measure"):
        generate.template_pages.render(tmp_path / "page.md.j2", lambda *_: "")


def test_gif_shows_the_newest_dream(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected a run folder with videos"):
        generate.newest_video(tmp_path)
    for steps, level in ((512, 40), (1024, 200)):
        frames = np.full((3, 64, 64, 3), level, np.uint8)
        frames[1] += 48
        write_video(tmp_path / "videos" / f"dream-{steps:09d}.mp4", frames, fps=5)
    video = generate.newest_video(tmp_path)
    assert video.name == "dream-000001024.mp4"
    with Image.open(generate.write_gif(video, tmp_path / "dream.gif")) as image:
        assert (image.size, image.n_frames, image.info["duration"]) == ((64, 64), 3, 200)
        assert abs(np.asarray(image.convert("RGB")).astype(int) - 200).max() <= 16


def test_pictures_of_a_study_are_copied_if_a_page_shows_their_kind(tmp_path: Path) -> None:
    figures = tmp_path / "fidelity_long" / "pong" / "figures"
    with pytest.raises(FileNotFoundError, match="expected a study's folder"):
        generate.copy_pictures(figures.parent, tmp_path / "docs")
    figures.mkdir(parents=True)
    for name in ("samples.png", "cost.png"):
        (figures / name).write_bytes(b"a picture")
    copied = generate.copy_pictures(figures.parent, tmp_path / "docs")
    assert [path.name for path in copied] == ["long_pong_samples.png"]


# What is shown


def run(folder: Path, *arguments: str) -> str:
    """What a Python process in that folder prints."""
    command, env = [sys.executable, *arguments], {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def catch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the README's environment and a short run in it."""
    folder = tmp_path_factory.mktemp("catch")
    [code], [config] = blocks(README, "python"), blocks(README, "yaml")
    (folder / "catch.py").write_text(code)
    (folder / "catch.yaml").write_text(config)
    small = (
        "env_steps=64 collect.prefill_steps=32 collect.steps_per_iteration=32 policy.dreams=16 "
        "collect.until_reward=false "
        "learn_model.batch_size=4 learn_model.train_ratio=32 learn_policy.dream_ratio=10 "
        "evaluate.final_episodes=2 run.video=false run.tensorboard=false world_model.bf16=false"
    )
    run(folder, "-m", "mbrl", "train", "catch.yaml", *small.split())
    return folder


def test_readme_environment_works_in_check_and_training(catch: Path) -> None:
    checks = ("check-env", "catch:Catch-v0", "--steps", "50", "--seconds", "600")
    checked = run(catch, "-m", "mbrl", *checks)
    assert "verdict      ready" in checked
    assert json.loads((catch / "runs/catch/result.json").read_text())["env_steps"] == 64


CLIENTS = ("gymnasium", "stable_baselines3", "torch", "ray")


@pytest.mark.parametrize("library", CLIENTS)
def test_other_libraries_train_in_the_dream_of_a_run(catch: Path, library: str) -> None:
    pytest.importorskip(library, reason=f"{library} is no dependency; docs/clients.md says so")
    code = dict(zip(CLIENTS, blocks(TEXTS["docs/clients.md"], "python"), strict=True))[library]
    (catch / f"{library}_client.py").write_text(code)
    assert run(catch, f"{library}_client.py").strip()


@pytest.mark.skipif(not hasattr(mbrl, "open_run"), reason="needs mbrl.open_run")
def test_tutorial_code_runs_on_a_trained_agent(catch: Path) -> None:
    for number, code in enumerate(blocks(TEXTS["docs/tutorial.md"], "python")):
        (catch / f"block_{number}.py").write_text(code)
        assert run(catch, f"block_{number}.py").strip()


def test_every_metric_of_a_run_is_explained_and_no_other(catch: Path) -> None:
    page = TEXTS["docs/metrics.md"].partition("\n## Baselines")[0]
    explained = set(re.findall(r"^\| `([\w/]+)` \|", page, re.MULTILINE))
    lines = map(json.loads, (catch / "runs/catch/metrics.jsonl").read_text().splitlines())
    assert {name for line in lines for name in line} == explained


def shown_commands() -> list[str]:
    """Every `mbrl …` command on the pages, one line each, without placeholders."""
    found = set()
    for text in TEXTS.values():
        # without what made results of the past, and without code
        text = re.sub("^From `[^\n]*$|^```python\n.*?^```", "", text, flags=re.M | re.S)
        text = text.replace("\\\n", " ")
        spans = re.findall(r"`([^`\n]+)`", text)
        lines = [line for block in blocks(text, r"\w*") for line in block.splitlines()]
        for line in (*spans, *lines):
            match = re.search(
                r"\bmbrl (train|compare|check-env|replay \w+|bench (?:fidelity|flow|worlds)) [^#]*",
                line,
            )
            if match and not re.search(r"\b(CONFIG|ID|DIR|N|GAME)\b|…|=\.\.\.", match[0]):
                found.add(" ".join(match[0].replace("$PWD", "/folder").split()))
    return sorted(found)


@pytest.mark.parametrize("command", shown_commands())
def test_shown_command_is_understood(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    options = _parser().parse_args(shlex.split(command)[1:])
    if options.command in ("train", "compare"):
        words = [options.config, *options.overrides] if "config" in options else options.words
        names = ["minatar" if word == "catch.yaml" else word for word in words if "=" not in word]
        overrides = [word for word in words if "=" in word]
        arms = [Arm(name="", agent="dream")]
        if options.command == "compare":
            paths = [find_config(name) for name in names]
            agents = options.agents.split(",") if options.agents else fitting(paths, overrides)
            arms = _arms(agents, options.variant)
        for name, arm in product(names, arms):
            load(find_config(name), [*arm.words, *overrides])
    if options.command == "bench" and options.study == "worlds":
        known = {world.name for worlds in WORLDS.values() for world in worlds}
        assert set(options.names) <= known
    elif options.command == "bench":
        study = study_of(options.study, options.words)
        choose(options.arms, study.trial.known_arms)
        settings = [word for word in options.words if "=" in word]
        if options.study == "flow":
            config_file.load(FlowStudySettings, overrides=settings)
        else:
            load(find_config("fidelity"), settings)


def test_yaml_blocks_are_yaml() -> None:
    for block in [block for text in TEXTS.values() for block in blocks(text, "yaml")]:
        for part in [block] if "\n  " in block else block.splitlines():
            yaml.safe_load(part)


# What is named


def heading_anchors(text: str) -> set[str]:
    """Anchors as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere_and_named_files_exist(page: str) -> None:
    folder = (ROOT / page).parent
    for link in re.findall(r"\]\(([^)\s]+)\)", TEXTS[page]):
        target, _, anchor = link.partition("#")
        if link.startswith(("http://", "https://")):
            continue
        path = (folder / target).resolve() if target else ROOT / page
        assert path.exists(), link
        assert not anchor or anchor in heading_anchors(path.read_text(encoding="utf-8")), link
    pattern = r"`((?:mbrl|agents|envs|configs|docs|tests|benchmarks)/[\w/.]*\.\w+)[`:]"
    assert [name for name in re.findall(pattern, TEXTS[page]) if not (ROOT / name).exists()] == []


def test_every_picture_is_on_a_page() -> None:
    pictures = {path.name for kind in ("png", "gif") for path in (ROOT / "docs").rglob(f"*.{kind}")}
    shown = {
        Path(link).name for text in TEXTS.values() for link in re.findall(r"\]\((.+?)\)", text)
    }
    assert pictures - shown == set()


def string_constants() -> str:
    """All text in our code, the literals that Python joins joined."""
    texts = []
    for path in [p for name in ("mbrl", "agents", "envs") for p in (ROOT / name).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [str(p.value) if isinstance(p, ast.Constant) else "…" for p in node.values]
                texts.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def test_troubleshooting_quotes_messages_that_exist() -> None:
    section = TEXTS["docs/troubleshooting.md"].partition("\n## Names")[0]
    not_ours = ("Unauthorized", "Token authentication", "unrecognized", "gymnasium[box2d]")
    rows = re.findall(r"^\| (`+)(.+?)\1", section, re.MULTILINE)
    ours = [message for _, message in rows if not message.startswith(not_ours)]
    said = string_constants()
    parts = [part.strip(" `:") for m in ours for part in re.split(r"…|'\w+'|`\w+`", m)]
    assert len(ours) >= 6 and [part for part in parts if part not in said] == []


def test_every_results_file_can_be_traced() -> None:
    for path in (ROOT / "results").rglob("*.json"):
        assert {"command", "commit", "machine"} <= json.loads(path.read_text()).keys(), path
