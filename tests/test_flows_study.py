"""The flow study: arms are settings, trials resume and are kept, costs add up, reports show it."""

import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mbrl.__main__ import main
from mbrl.errors import ConfigError, TrainingError
from mbrl.flows import cost
from mbrl.flows import train as train_module
from mbrl.flows.arms import ARMS, choose
from mbrl.flows.images import Source, load_images
from mbrl.flows.results import aggregate, minutes_to, thresholds_of
from mbrl.flows.settings import FlowStudySettings
from mbrl.flows.step import Order, peak_rss_bytes, run_steps
from mbrl.flows.tables import TABLES, tables
from mbrl.flows.train import Training
from mbrl.flows.trial import parsed, run
from mbrl.flows.trials import MEASURES, Trial, is_done, plan, refuse_others
from mbrl.progress import read_metrics

ROOT = Path(__file__).resolve().parent.parent
TINY = (
    *("flow.scales=2", "flow.steps=2", "flow.width=4"),
    *("train.batch_size=4", "train.warmup_updates=2"),
)


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """One thread, and afterwards threads and signals as they were."""
    threads, handler = torch.get_num_threads(), signal.getsignal(signal.SIGTERM)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(path=write_images(tmp_path / "some.npz"))


def write_images(path: Path, seed: int = 0) -> Path:
    """Pictures of 8 x 8 pixels with one bright dot on grey."""
    rng = np.random.default_rng(seed)
    images = np.full((60, 8, 8, 1), 40, np.uint8)
    for image in images:
        row, column = rng.integers(0, 7, 2)
        image[row : row + 2, column : column + 2] = rng.integers(150, 256)
    np.savez(path, images=images)
    return path


def make_trial(source: Source, out: Path, **changes: Any) -> Trial:
    given: dict[str, Any] = {
        "source": source,
        "arm": "level",
        "seed": 0,
        "minutes": 0.002,
        "overrides": TINY,
        "out": out,
        "results": out / "results",
        "quick": True,
    }
    return Trial(**{**given, **changes})


def write_trial(trial: Trial, measures: dict[str, Any], **changes: Any) -> None:
    result = {
        "images": trial.source.name,
        "arm": trial.arm,
        "seed": trial.seed,
        "command": f"mbrl bench flow some --arms {trial.arm} --seeds {trial.seed + 1} --minutes 1",
        "commit": "abc",
        "machine": {"cpu": "a processor", "cores": 2},
        "cpu_minutes": trial.minutes,
        "wall_time_s": 1.0,
        "updates": 10,
        "parameters": 100,
        "settings": trial.settings(),
        "measures_version": MEASURES,
        "measures": {"diverged": 0.0, **measures},
        "curve": {"cpu_minutes": [], "bits_per_dim": [], "held_out_bits_per_dim": []},
    }
    trial.result_path.parent.mkdir(parents=True, exist_ok=True)
    trial.result_path.write_text(json.dumps({**result, **changes}))


# The command


def words(path: Path, out: Path, *more: str) -> list[str]:
    line = ["bench", "flow", *TINY, "--images", str(path), "--quick", "--minutes", "0.002"]
    return [*line, "--seeds", "1", "--out", str(out), "--results", str(out / "results"), *more]


@pytest.mark.timeout(400)
def test_the_command_trains_measures_and_reports_and_then_has_nothing_left_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, path = tmp_path / "out", write_images(tmp_path / "some.npz")
    line = words(path, out, "--arms", "level", "--no-costs")
    done = subprocess.run(
        [sys.executable, "-m", "mbrl", *line],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((out / "results" / "some" / "level-0.json").read_text())
    assert {"command", "commit", "machine", "seed", "settings", "curve"} <= result.keys()
    assert result["command"].startswith("mbrl bench flow flow.scales=2")
    assert str(tmp_path) not in json.dumps(result)
    assert 0 < result["measures"]["bits_per_dim"] < 20
    assert result["measures"]["round_trip"] == 1
    assert result["rows"] == 4 * result["updates"]
    summary = json.loads((out / "results" / "some.json").read_text())
    assert summary["about"]["baselines"]["uniform"] == 5
    assert summary["about"]["train"] == 54
    page = (out / "report.html").read_text()
    assert "by level" in page and "not to be quoted" in page
    assert 'src="http' not in page and 'href="http' not in page
    for name in ("samples", "interpolation"):
        assert (out / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")

    def nothing(*_: object, **__: object) -> None:
        raise AssertionError("a finished trial was started again")

    monkeypatch.setattr(subprocess, "Popen", nothing)
    monkeypatch.setenv("MBRL_COMMIT", "unknown")
    assert main(line) == 0
    assert "some level seed 0: done before" in capsys.readouterr().out
    # with other settings, or other images of the same name, nothing is done at all
    assert main([*line[:2], "train.lr=0.5", *line[2:]]) == 2
    assert "train.lr: 0.002 became 0.5" in capsys.readouterr().err
    write_images(path, seed=1)
    assert main(line) == 2
    assert "holds results of other images called some" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["pongg"], "expected a game out of pong, breakout.*did you mean pong?"),
        ([], "expected a game, or --images.*neither"),
        (["pong", "breakout"], "expected one game"),
        (["pong", "--arms", "level,glow"], "--arms: expected main, all or distinct names out of"),
        (["pong", "flow.widht=3"], "did you mean flow.width"),
        (["pong", "--seeds", "0"], "at least one seed"),
        (["pong", "--minutes", "0"], "minutes above 0"),
        (["pong", "--jobs", "0"], "at least one job"),
        (["pong", "--bits", "9"], "1 to 8 bits"),
        (["--images", "nowhere"], "--images nowhere: expected a folder.*got nothing there"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_sentence(
    given: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = ["--out", str(tmp_path / "out"), "--results", str(tmp_path / "results")]
    assert main(["bench", "flow", *given, *folders]) == 2
    error = capsys.readouterr().err.strip()
    first, _, second = said.partition(".*")
    assert error.startswith("mbrl: ") and first in error and second in error
    assert not (tmp_path / "out").exists()


def test_images_that_cannot_be_halved_so_often_are_refused(
    source: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = words(source.path or Path(), tmp_path / "out")
    line[line.index("flow.scales=2")] = "flow.scales=4"
    assert main(line) == 2
    assert "expected at most 3 for images of 8 x 8" in capsys.readouterr().err


# Arms


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_is_a_valid_setting_and_can_be_trained(
    arm: str, source: Source, tmp_path: Path
) -> None:
    with Training(make_trial(source, tmp_path, arm=arm), load_images(source)) as one:
        assert math.isfinite(one._learn()["bits_per_dim"])


def test_main_arms_are_the_three_of_the_claim() -> None:
    assert choose("main") == ["none", "level", "level+film+proj"]
    assert {(ARMS[name].seeds, ARMS[name].minutes) for name in choose("main")} == {(3, 20.0)}
    assert {(arm.seeds, arm.minutes) for arm in ARMS.values() if not arm.main} == {(1, 20.0)}


def test_main_arms_differ_in_sharing_alone_at_32_steps(source: Source, tmp_path: Path) -> None:
    flows = [make_trial(source, tmp_path, arm=arm, overrides=()).config() for arm in choose("main")]
    assert [one.flow.sharing for one in flows] == ["none", "level", "level+film+proj"]
    assert {(one.flow.steps, one.flow.scales) for one in flows} == {(32, 3)}
    rest = [one.model_dump() for one in flows]
    for one in rest:
        del one["flow"]["sharing"]
    assert rest[0] == rest[1] == rest[2]


def test_main_arms_come_first_each_with_its_first_seed(source: Source, tmp_path: Path) -> None:
    trials = plan(
        source,
        ["global", "none", "level"],
        seeds=2,
        minutes=None,
        overrides=(),
        out=tmp_path,
        results=tmp_path,
    )
    names = [trial.name for trial in trials]
    assert names == ["none-0", "level-0", "none-1", "level-1", "global-0", "global-1"]


@pytest.mark.parametrize("game", ["pong", None])
def test_a_trial_s_command_names_the_trial(game: str | None, tmp_path: Path) -> None:
    images = Source(game=game, size=32) if game else Source(path=tmp_path / "x.npz", bits=8)
    trial = make_trial(images, tmp_path, arm="level+film", seed=3)
    assert trial.command[1:3] == ["-m", "mbrl.flows.trial"]
    assert parsed("", trial.command[3:]) == trial


# One trial


def test_a_stopped_trial_goes_on_from_its_checkpoint(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn = Training._learn

    def learn_and_be_told_to_stop(training: Training) -> dict[str, float]:
        metrics = learn(training)
        os.kill(os.getpid(), signal.SIGTERM)
        return metrics

    monkeypatch.setattr(Training, "_learn", learn_and_be_told_to_stop)
    assert run(make_trial(source, tmp_path, minutes=10.0)) is False
    monkeypatch.undo()
    before = read_metrics(tmp_path / "level-0")[-1]
    trial = make_trial(source, tmp_path, minutes=before["study/cpu_s"] / 60 + 0.002)
    assert not trial.result_path.exists() and run(trial) is True
    result = json.loads(trial.result_path.read_text())
    assert result["updates"] > before["study/updates"] == 1
    updates = [line["study/updates"] for line in read_metrics(tmp_path / "level-0", "train")]
    assert updates == sorted(set(updates)) and updates[0] == 1


def test_a_resumed_trial_equals_one_that_never_stopped(source: Source, tmp_path: Path) -> None:
    images = load_images(source)
    with Training(make_trial(source, tmp_path / "a"), images) as whole:
        for _ in range(4):
            whole._learn()
    with Training(make_trial(source, tmp_path / "b"), images) as half:
        half._learn()
        half._learn()
        half._save()
    with Training(make_trial(source, tmp_path / "b"), images) as again:
        assert again.updates == 2 and again.cpu_s == half.cpu_s
        again._learn()
        again._learn()
    wanted = whole.flow.state_dict()
    for name, value in again.flow.state_dict().items():
        assert torch.equal(value, wanted[name]), name


def test_a_loss_that_is_not_finite_is_a_result_and_no_crash(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(flow: Any, *_: Any) -> torch.Tensor:
        return math.nan * sum(weight.sum() for weight in flow.parameters())

    monkeypatch.setattr(train_module, "loss_of", broken)
    trial = make_trial(source, tmp_path)
    assert run(trial) is True and is_done(trial)
    result = json.loads(trial.result_path.read_text())
    assert result["measures"]["diverged"] == 1 and result["measures"]["bits_per_dim"] is None
    assert result["updates"] == 1
    monkeypatch.undo()
    assert run(trial) is True  # and it is not tried again


def test_updates_whose_gradient_is_not_finite_are_left_out_ten_in_a_row_diverge(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Training(make_trial(source, tmp_path), load_images(source)) as one:
        one._learn()
        before = [weight.clone() for weight in one.flow.parameters()]
        monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(math.inf))
        for _ in range(9):
            one._learn()
        assert one.skipped == 9 and not one.over
        assert all(map(torch.equal, before, one.flow.parameters()))
        one._learn()
        assert one.diverged and one.over


# What is there already


def test_results_of_the_same_settings_are_kept_and_others_refused(
    source: Source, tmp_path: Path
) -> None:
    trial = make_trial(source, tmp_path)
    write_trial(trial, {"bits_per_dim": 1.0})
    refuse_others([trial])
    assert is_done(trial) and not is_done(make_trial(source, tmp_path, minutes=1.0))
    for changes, said in (
        ({"minutes": 0.001}, "minutes: 0.002 became 0.001"),
        ({"overrides": (*TINY, "flow.width=5")}, "flow.width: 4 became 5"),
        ({"quick": False}, "quick: True became False"),
    ):
        with pytest.raises(ConfigError, match=f"bench flow: .*{said}.*--force"):
            refuse_others([make_trial(source, tmp_path, **changes)])
    refuse_others([make_trial(source, tmp_path, minutes=0.001)], force=True)
    assert not trial.result_path.exists()


# Adding up


def curve(*points: tuple[float, float]) -> dict[str, Any]:
    minutes, bits = zip(*points, strict=True)
    return {"cpu_minutes": minutes, "bits_per_dim": bits, "held_out_bits_per_dim": bits}


def test_gaps_are_taken_seed_by_seed_and_times_from_the_curves(
    source: Source, tmp_path: Path
) -> None:
    for seed, (alone, shared) in enumerate([(1.0, 1.1), (1.2, 1.5), (1.4, 1.6)]):
        none = make_trial(source, tmp_path, arm="none", seed=seed)
        write_trial(none, {"bits_per_dim": alone}, curve=curve((0, 4.0), (10, 2.0), (20, 1.0)))
        level = make_trial(source, tmp_path, seed=seed)
        late = curve((0, 4.0), (20, 2.0))
        write_trial(level, {"bits_per_dim": shared}, curve=late, parameters=10)
    summary = aggregate("some", tmp_path / "results")
    assert summary["thresholds"] == {"quarter": 3.0, "half": 2.0, "end": 1.0}
    level_arm = summary["arms"]["level"]
    assert level_arm["gap_to_none"]["mean"] == pytest.approx(0.2)
    assert level_arm["gap_to_none"]["ci95"] == [pytest.approx(0.1), pytest.approx(0.3)]
    assert level_arm["minutes_to"]["quarter"]["mean"] == 10
    assert level_arm["minutes_to"]["half"]["mean"] == 20
    assert level_arm["minutes_to"]["end"]["mean"] is None
    assert summary["arms"]["none"]["minutes_to"]["half"]["mean"] == 10
    row = dict(
        zip(tables(summary)["main"][1].head, tables(summary)["main"][1].rows[1], strict=True)
    )
    assert row["of no sharing"] == "10 %" and row["above no sharing"] == "0.2000 (0.1000–0.3000)"
    assert row["diverged"] == "0 of 3"


def test_a_diverged_run_counts_and_is_in_no_mean(source: Source, tmp_path: Path) -> None:
    write_trial(make_trial(source, tmp_path), {"bits_per_dim": None, "diverged": 1.0})
    write_trial(make_trial(source, tmp_path, seed=1), {"bits_per_dim": 2.0})
    summary = aggregate("some", tmp_path / "results")
    assert summary["runs"]["level"]["diverged"] == 1
    assert summary["arms"]["level"]["bits_per_dim"]["mean"] == 2
    assert summary["thresholds"] == {} == thresholds_of([])


def test_a_threshold_that_is_never_reached_takes_no_time() -> None:
    one = {"curve": curve((1, 3.0), (2, 2.0))}
    assert minutes_to(one, 2.5) == 1.5 and minutes_to(one, 1.0) is None
    assert minutes_to({"curve": {"cpu_minutes": [], "held_out_bits_per_dim": []}}, 1.0) is None


# Costs


def tiny_order(**changes: Any) -> Order:
    flow = {"scales": 2, "steps": 2, "width": 4}
    config = FlowStudySettings.model_validate({"flow": flow})
    return Order(config=config, shape=(1, 8, 8), levels=32, batch=2, steps=1, **changes)


@pytest.mark.timeout(300)
def test_two_ranks_take_steps_together_and_say_what_talking_takes() -> None:
    found = run_steps(tiny_order(ranks=2))
    assert len(found) == 2
    for one in found:
        assert min(one["step_s"] + one["no_sync_step_s"] + one["all_reduce_s"]) > 0
        assert len(one["step_cpu_s"]) == 1 and one["max_rss_bytes"] > 2**20


def test_a_process_that_fails_says_why() -> None:
    order = tiny_order()
    broken = order.config.model_copy(
        update={"flow": order.config.flow.model_copy(update={"scales": 9})}
    )
    with pytest.raises(TrainingError, match=r"expected 1 training steps, got an error: .*scales"):
        run_steps(order.model_copy(update={"config": broken}))


def test_resident_memory_is_at_least_what_was_just_filled() -> None:
    before = peak_rss_bytes()
    held = np.ones(before // 8 + 2**23)
    assert peak_rss_bytes() >= held.nbytes


def test_costs_are_counted_by_arm_and_shown_beside_no_sharing(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_process(order: Order) -> list[dict[str, Any]]:
        seconds = {name: [0.5] for name in ("step_s", "step_cpu_s", "all_reduce_s")}
        grown = 1000 * bool(order.steps)
        return [{**seconds, "no_sync_step_s": [0.4], "max_rss_bytes": 5000 + grown}] * order.ranks

    monkeypatch.setattr(cost, "run_steps", no_process)
    trials = [make_trial(source, tmp_path, arm=arm) for arm in ("none", "level")]
    for trial in trials:
        write_trial(trial, {"bits_per_dim": 1.0})
        assert not cost.is_done(trial)
        cost.run(trial)
        assert cost.is_done(trial)
    summary = aggregate("some", tmp_path / "results")
    none, level = (summary["costs"][arm] for arm in ("none", "level"))
    assert level["parameters"] < none["parameters"]
    assert level["checkpoint_bytes"] < none["checkpoint_bytes"]
    assert none["saved_bytes"]["reversible"] < none["saved_bytes"]["plain"]
    plain = none["saved_by_steps"]["plain"]
    assert plain["4"] > plain["2"]
    assert none["training_bytes"]["plain"] == 16 * none["parameters"] + none["saved_bytes"]["plain"]
    assert none["peak_rss_bytes"] == dict.fromkeys(cost.MODES, 1000)
    assert none["ranks"]["2"]["communication_ms"] == pytest.approx(100)
    assert none["ranks"]["2"]["all_reduce_bytes"] == 4 * none["parameters"]
    assert {"memory", "depth", "time", "latency"} <= tables(summary).keys() <= set(TABLES)


def test_a_checkpoint_holds_shared_weights_once() -> None:
    one = torch.nn.Linear(4, 4, bias=False)
    assert cost.parameters(torch.nn.Sequential(one, one)) == 16
    once, twice = (cost.checkpoint_bytes(torch.nn.Sequential(*[one] * n)) for n in (1, 2))
    assert once == twice >= 64


# The page


def test_page_takes_tables_and_pictures_from_the_results(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    write_trial(make_trial(source, tmp_path, minutes=20.0), {"bits_per_dim": 1.25})
    aggregate("some", tmp_path / "results")
    monkeypatch.setattr(generate, "FLOW_RESULTS", tmp_path / "results")
    monkeypatch.setattr(generate, "FLOW_PICTURES", tmp_path / "docs")
    figure = tmp_path / "some" / "figures" / "samples.png"
    figure.parent.mkdir(parents=True)
    figure.write_bytes(b"a picture")
    generate.copy_pictures(tmp_path / "some", tmp_path / "docs")
    parts = ("main", "memory", "origin", "pictures")
    made = generate.flows("".join(f"<!-- flows some {part} -->\n<!-- end -->\n" for part in parts))
    assert "| by level | 1 × 20 | 10 | 100 | – | 1.2500 | 0 of 1 |" in made
    assert "None recorded yet." in made  # no costs
    assert "`mbrl bench flow some --minutes 1 --arms level --seeds 1`" in made
    assert "](flows/some_samples.png)" in made
    assert generate.flows(made) == made
    with pytest.raises(ValueError, match=r"docs/flows.md: expected a part out of main, .*got x"):
        generate.flows("<!-- flows some x -->\n<!-- end -->")
