import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from mbrl.errors import MbrlError
from mbrl.report import figures as plots
from mbrl.report import html as report
from mbrl.report.comparison import comparison, gathered, summarise
from mbrl.report.html import (
    compare_warnings,
    write_compare_report,
    write_games_report,
    write_run_report,
)
from mbrl.run.record import RunRecord

COMMIT = "0123456789" * 4
CURVES = {"dream": [[100, 0.0], [200, 2.0]], "ppo": [[100, 0.0], [200, 0.5]]}


def make_run(folder: Path, agent: str = "dream", seed: int = 0, **changes: Any) -> RunRecord:
    """A finished run folder, read back."""
    folder = folder / f"{agent}-{seed}"
    folder.mkdir(parents=True)
    curve = [[steps, score + 0.1 * seed] for steps, score in CURVES[agent]]
    result = {
        "agent": agent,
        "env_id": "MinAtar/Breakout-v1",
        "seed": seed,
        "env_steps": 200,
        "wall_time_s": 600.0,
        "eval": {"episodes": 20, "mean": curve[-1][1], "std": 0.5, "returns": [1.0, 3.0]},
        "curve": curve,
        "budget": {"collected_steps": 200, "replayed_rows": 76_800, "odd_count": 3},
        "commit": COMMIT,
        **changes,
    }
    (folder / "result.json").write_text(json.dumps(result))
    config = {"agent": agent, "env": changes.get("env", {"id": "MinAtar/Breakout-v1"})}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with (folder / "metrics.jsonl").open("w") as file:
        for i, (steps, score) in enumerate(curve):
            head = {"env_steps": steps, "wall_time_s": 300.0 * (i + 1)}
            file.write(json.dumps({**head, "kind": "eval", "eval/mean": score}) + "\n")
            losses = {"model/loss": 5.0 - i, "model/gap": None, "policy/name": "x"}
            file.write(json.dumps({**head, "kind": "train", **losses}) + "\n")
    return RunRecord.read(folder)


def make_result(runs: list[RunRecord], **changes: Any) -> dict[str, Any]:
    names = dict.fromkeys(run.agent for run in runs)
    ratio = {"threshold": 1.0, "against": "ppo", "value": 3.0, "ci95": [2.0, 4.0], "at_least": True}
    return {
        "env_id": "MinAtar/Breakout-v1",
        "env_steps": 200,
        "agents": {name: summarise([run for run in runs if run.agent == name]) for name in names},
        "steps_ratio": ratio,
        "leads": "steps_ratio",
        "sentence": "dream needs 3.0 times fewer env steps.",
        "command": "mbrl compare configs/minatar.yaml --agents dream,ppo --seeds 2",
        "commit": COMMIT,
        "machine": {"cpu": "Some CPU", "cores": 2, "ram_gb": 24.0, "gpus": []},
        "seeds": [0, 1],
        **changes,
    }


@pytest.fixture
def runs(tmp_path: Path) -> list[RunRecord]:
    pairs = [(agent, seed) for agent in ("dream", "ppo") for seed in (0, 1)]
    return [make_run(tmp_path, agent, seed) for agent, seed in pairs]


class Page(HTMLParser):
    """Text, links to elsewhere, and whether every element is closed."""

    VOID = frozenset({"meta", "img", "br", "link", "use", "path", "rect"})

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text, self.sources, self.open = "", [], []
        self.tags: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = re.sub(r"\s+", " ", self.text.replace("\u00a0", " "))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [v for k, v in attrs if k in ("src", "href") and v and v[0] != "#"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self.text += " " if tag in ("td", "th", "tr", "dt", "dd", "li") else ""
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def clip(path: Path, size: int = 1000) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes(size))
    return path


def test_comparison_is_one_file_that_needs_nothing_else(
    tmp_path: Path, runs: list[RunRecord]
) -> None:
    result = make_result(runs, env_id="<script>alert(1)</script>")
    videos = [clip(tmp_path / "dream_0.mp4")]
    path = write_compare_report(tmp_path / "out" / "report.html", result, runs, videos)
    page = Page(path)
    assert page.open == []
    assert [source.split(",")[0] for source in page.sources] == ["data:video/mp4;base64"]
    assert page.tags.count("svg") == 2  # against steps and against time
    assert "script" not in page.tags
    assert "@import" not in path.read_text()
    for fact in (
        "dream against ppo on <script>alert(1)</script>",
        "dream needs 3.0 times fewer env steps. After 200 real environment steps: dream 2.05 (2 to",
        "rows of experience replayed 76,800 76,800",
        "sticky actions 0.1",  # a default of the family, not in the config
        "Some CPU, 2 cores, 24 GB",
        "mbrl compare configs/minatar.yaml --agents dream,ppo --seeds 2",
        COMMIT,
    ):
        assert fact in page.text


def test_scores_at_the_end_of_a_larger_budget_are_beside_those_at_equal_steps(
    tmp_path: Path,
) -> None:
    longer = {"env_steps": 800, "curve": [[100, 0.0], [200, 0.5], [800, 4.5]]}
    ours = make_run(tmp_path, "dream")
    theirs = make_run(tmp_path, "ppo", **longer, eval={"episodes": 20, "mean": 4.5})
    about = {key: make_result([ours])[key] for key in ("env_id", "seeds", "command", "machine")}
    found = comparison(about, {"dream": [ours], "ppo": [theirs]})
    path = write_compare_report(tmp_path / "r.html", found.result, [ours, theirs])
    text = Page(path).text
    # 0.5 + 4 * (425 - 200) / 600 = 2
    assert "dream needs 2.1 times fewer env steps than the best baseline (ppo)" in text
    assert "Returns after 200 steps" in text and "ppo 0.50 – 0.50 4.50 (800)" in text
    assert "real environment steps per run: dream 200, ppo 800" in text


def test_report_of_several_games_has_a_panel_and_a_row_for_each(
    tmp_path: Path, runs: list[RunRecord]
) -> None:
    result = make_result(runs)
    about = {key: result[key] for key in ("seeds", "command", "machine")}
    of_arm = {name: [run for run in runs if run.agent == name] for name in ("dream", "ppo")}
    games = {
        "breakout": comparison({"env_id": "MinAtar/Breakout-v1", **about}, of_arm),
        "space_invaders": comparison({"env_id": "<i>", **about}, {"dream": of_arm["dream"]}),
    }
    whole = gathered(about, games)
    panels = {name: game.curves for name, game in games.items()}
    page = Page(write_games_report(tmp_path / "report.html", whole, panels))
    assert page.open == [] and page.tags.count("svg") == 1 and "i" not in page.tags
    assert page.sources == ["breakout/report.html", "space_invaders/report.html"]
    for fact in (
        whole["sentence"],
        f"space invaders: {games['space_invaders'].result['sentence']}",
        "breakout 200 2.05 [2, 2.10] 0.55 [0.50, 0.60]",
        "space invaders 200 2.05 [2, 2.10] –",
        "Only 2 seeds",
        "MinAtar/Breakout-v1, <i>",
        result["command"],
    ):
        assert fact in page.text, fact
    assert "on 1 of them (geometric mean" in whole["sentence"]
    picture = plots.plot_panels(tmp_path / "made" / "curves.png", panels)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_videos_beyond_the_room_are_linked_and_the_rest_embedded(
    tmp_path: Path, runs: list[RunRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = clip(tmp_path / "v" / "s.mp4"), clip(tmp_path / "v" / "l.mp4", 100_001)
    monkeypatch.setattr(report, "MAX_EMBEDDED_BYTES", 100_000)
    path = tmp_path / "out" / "report.html"
    page = Page(write_compare_report(path, make_result(runs), runs, [large, small]))
    assert page.sources[0] == "../v/l.mp4"
    assert page.sources[1].startswith("data:video/mp4;base64,")
    assert "too large to be part of this file" in page.text


def test_report_of_one_run_shows_curve_metrics_and_settings(
    tmp_path: Path, runs: list[RunRecord]
) -> None:
    page = Page(write_run_report(tmp_path / "run.html", runs[0], [clip(tmp_path / "a.mp4")]))
    assert page.open == []
    assert page.sources[0].startswith("data:video/mp4;base64,")
    assert page.tags.count("svg") == 2
    assert "mean return 2, standard deviation 0.50, over 20 episodes" in page.text
    assert "One run of one seed says little" in page.text
    assert "agent: dream" in page.text
    without = make_run(tmp_path / "without", curve=[], budget={})  # evaluations on the way
    assert Page(write_run_report(tmp_path / "run.html", without)).tags.count("svg") == 1


def test_held_out_losses_are_drawn_beside_those_of_training(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    lines = [
        {"env_steps": n, "kind": "train", "world_model/kl": 3.0 - n, "holdout/kl": 3.0}
        for n in (1, 2)
    ]
    both = write_run_report(tmp_path / "both.html", replace(run, metrics=lines)).read_text()
    for line in lines:
        line["other/kl"] = line.pop("holdout/kl")
    apart = write_run_report(tmp_path / "apart.html", replace(run, metrics=lines)).read_text()
    panels = [text.count('id="axes_') for text in (both, apart)]
    assert panels[1] - panels[0] == 1  # one panel for the two curves
    dashed = [text.count("stroke-dasharray") for text in (both, apart)]
    assert dashed[0] > dashed[1]


def test_few_seeds_and_dirty_code_are_warned_of(tmp_path: Path, runs: list[RunRecord]) -> None:
    runs[3] = make_run(tmp_path / "dirty", "ppo", 1, commit=f"{COMMIT}-dirty")
    warnings = " ".join(compare_warnings(make_result(runs), runs))
    assert "Only 2 seeds" in warnings
    assert "changes that are in no commit" in warnings
    assert "different" not in warnings
    fewer = " ".join(compare_warnings(make_result(runs[:3]), runs[:3]))
    assert "The agents have different numbers of seeds: dream 2, ppo 1." in fewer


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"env_steps": 900}, "different numbers of environment steps: dream 200; ppo 900."),
        ({"eval": {"episodes": 5, "mean": 1.0}}, "different numbers of episodes"),
        ({"commit": "f" * 40}, "different commits"),
        ({"env": {"id": "MinAtar/Breakout-v1", "sticky_actions": 0.0}}, "environment settings"),
    ],
)
def test_runs_that_do_not_compare_are_warned_of(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    runs = [make_run(tmp_path, "dream"), make_run(tmp_path, "ppo", **changes)]
    assert said in " ".join(compare_warnings(make_result(runs), runs))


def test_record_reads_what_a_run_left_and_refuses_an_unfinished_one(tmp_path: Path) -> None:
    run = make_run(tmp_path, "ppo", 1)
    assert (run.agent, run.seed, run.env_steps) == ("ppo", 1, 200)
    assert run.curve_over_time() == [[300.0, 0.1], [600.0, 0.6]]
    with pytest.raises(MbrlError, match=r"expected the result of finished work .* to finish it"):
        RunRecord.read(tmp_path)
    for broken in ('{"agent', "3"):
        (tmp_path / "result.json").write_text(broken)
        with pytest.raises(MbrlError, match=r"expected the result .* remove a broken file"):
            RunRecord.read(tmp_path)
    (tmp_path / "result.json").write_text('{"agent": "dream"}')
    with pytest.raises(MbrlError, match="it lacks env_id, seed, env_steps, wall_time_s, "):
        RunRecord.read(tmp_path)


def test_agents_keep_their_colours_in_any_company() -> None:
    assert plots.colours(["ppo", "dream"])["dream"] == plots.colours(["dream"])["dream"]
    many = plots.colours(["dream", "ppo", "dqn", "sac", "appo", "random"])
    assert len(set(many.values())) == 6
