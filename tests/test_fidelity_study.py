"""The fidelity study: trials resume and are skipped, results add up, reports show what there is."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mbrl.__main__ import main
from mbrl.errors import ConfigError
from mbrl.fidelity import trial as trial_module
from mbrl.fidelity.arms import ARMS, REFERENCE, SWEEP, choose
from mbrl.fidelity.figures import drift_figure
from mbrl.fidelity.frames import collect_frames
from mbrl.fidelity.games import GAMES
from mbrl.fidelity.measure import Sizes
from mbrl.fidelity.pictures import Pictures, sample_sheet, strip_sheet
from mbrl.fidelity.report import write_report
from mbrl.fidelity.results import aggregate, look_up, read_trials, summarise
from mbrl.fidelity.study import study
from mbrl.fidelity.tables import cell, markdown_table, summary_rows, tables
from mbrl.fidelity.trial import Training, run
from mbrl.fidelity.trials import (
    MEASURES,
    Trial,
    changed_settings,
    is_done,
    plan,
    refuse_others,
)
from mbrl.progress import read_metrics
from mbrl.replay import ReplayStore

ROOT = Path(__file__).resolve().parent.parent
GAME = GAMES["synthetic_pong"]
STEPS = 800
TINY = (
    *("world_model.hidden=16", "world_model.prior_hidden=8", "world_model.heads.hidden=8"),
    *("world_model.code={groups: 3, classes: 4}", "world_model.bf16=false"),
    *("world_model.encoder.channels=[4,4,4]", "world_model.encoder.hidden=16"),
    *("world_model.decoder.layers=1", "world_model.decoder.channels=2"),
    *("world_model.decoder.map_channels=2", "world_model.decoder.hidden=8"),
    *("learn_model.batch_size=2", "learn_model.sequence_length=4"),
)


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fidelity") / "frames"
    collect_frames(GAME, folder, STEPS, 1000, trial_module.FRAMES_SEED)
    return folder


@pytest.fixture
def out(tmp_path: Path, frames: Path) -> Path:
    shutil.copytree(frames, tmp_path / "out" / "frames")
    return tmp_path / "out"


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """One thread, and afterwards threads and signals as they were."""
    threads, handler = torch.get_num_threads(), signal.getsignal(signal.SIGTERM)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    signal.signal(signal.SIGTERM, handler)


def make_trial(out: Path, **changes: Any) -> Trial:
    given: dict[str, Any] = {
        "game": GAME.name,
        "arm": "pixelcnn",
        "seed": 0,
        "minutes": 0.005,
        "steps": STEPS,
        "overrides": TINY,
        "out": out,
        "results": out / "results",
        "quick": True,
    }
    return Trial(**{**given, **changes})


def training(trial: Trial) -> Training:
    store = ReplayStore(trial.frames_dir / "train", GAME.env.name)
    return Training(trial, GAME, trial.config(GAME.env), store)


# The command


@pytest.mark.timeout(400)
def test_the_command_trains_measures_and_reports_and_then_has_nothing_left_to_do(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = out / "results"
    words = ["bench", "fidelity", GAME.name, *TINY, "--arms", "pixelcnn", "--quick"]
    words += ["--seeds", "1", "--minutes", "0.005", "--steps", str(STEPS)]
    words += ["--out", str(out), "--results", str(results)]
    done = subprocess.run(
        [sys.executable, "-m", "mbrl", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((results / GAME.name / "pixelcnn-0.json").read_text())
    assert {"command", "commit", "machine", "seed", "settings", "curve"} <= result.keys()
    assert result["cpu_s"] >= 0.3
    assert result["rows"] == result["updates"] * 2 * 4
    assert result["command"].startswith("mbrl bench fidelity synthetic_pong world_model.hidden=16")
    assert result["command"].endswith("--quick")
    assert str(out.parent) not in result["command"]
    assert 0 <= result["measures"]["ball_recall"] <= 1
    assert result["curve"]["cpu_minutes"][-1] == pytest.approx(result["cpu_s"] / 60, abs=2e-3)
    summary = json.loads((results / f"{GAME.name}.json").read_text())
    assert list(summary["arms"]) == ["pixelcnn"]
    assert look_up(summary["arms"]["pixelcnn"], "drift/15/ball_recall") is not None
    page = (out / "report.html").read_text()
    assert "PixelCNN" in page and "not to be quoted" in page
    assert 'src="http' not in page and 'href="http' not in page
    for name in ("samples", "dream_1", "drift", "cost"):
        assert (out / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    pictures = Pictures.read(out / "pixelcnn-0" / "pictures.npz")
    assert pictures.real.shape == pictures.samples.shape
    assert pictures.strip_real.shape == pictures.strips.shape

    def nothing(*_: object, **__: object) -> None:
        raise AssertionError("a finished trial was started again")

    monkeypatch.setattr(subprocess, "Popen", nothing)
    monkeypatch.setenv("MBRL_COMMIT", "unknown")
    assert main(words) == 0
    assert "pixelcnn seed 0: done before" in capsys.readouterr().out
    # and with other settings nothing is done at all
    assert main([*words[:4], "world_model.hidden=8", *words[4:]]) == 2
    said = capsys.readouterr().err
    assert "world_model.hidden: 16 became" in said and "--force" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pongg"], "expected a game out of pong, breakout.*did you mean pong?"),
        (["pong", "--arms", "pixelcnn,cnn"], "--arms: expected main, all or distinct names out of"),
        (["pong", "--arms", "pixelcnn,pixelcnn"], "distinct names"),
        (["pong", "env.id=x"], "expected overrides of world_model"),
        (["pong", "world_model.hiden=3"], "did you mean world_model.hidden"),
        (["pong", "--seeds", "0"], "at least one seed"),
        (["pong", "--minutes", "0"], "minutes above 0"),
        (["pong", "--steps", "100"], "800 steps"),
        (["pong", "--jobs", "0"], "at least one job"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_sentence(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = ["--out", str(tmp_path / "out"), "--results", str(tmp_path / "results")]
    assert main(["bench", "fidelity", *words, *folders]) == 2
    error = capsys.readouterr().err.strip()
    first, _, second = said.partition(".*")
    assert error.startswith("mbrl: ") and first in error and second in error
    assert not (tmp_path / "out").exists()


def test_a_failed_trial_is_named_the_others_go_on_and_the_exit_code_is_one(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started = out.parent / "started"
    code = f"import sys; open({str(started)!r}, 'a').write('x'); sys.exit('no more memory')"
    monkeypatch.setattr(Trial, "command", [sys.executable, "-c", code])
    words = ["bench", "fidelity", GAME.name, *TINY, "--arms", "pixelcnn,deconv_mse", "--seeds", "2"]
    words += ["--steps", str(STEPS), "--out", str(out), "--results", str(out / "results")]
    assert main(words) == 1
    said = capsys.readouterr().err
    assert "pixelcnn seed 0 failed with exit code 1: no more memory" in said
    assert "deconv_mse seed 1 failed" in said and "the same command goes on" in said
    assert started.read_text() == "xxxx"


def test_each_trial_has_one_core_and_keeps_its_memory(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = out.parent / "told"
    names = ("OMP_NUM_THREADS", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
    code = f"import os; open({str(told)!r}, 'w').write(' '.join(os.environ[n] for n in {names}))"
    monkeypatch.setattr(Trial, "command", [sys.executable, "-c", code])
    folders = {"out": out, "results": out / "results"}
    [failed] = study(GAME.name, TINY, arms="pixelcnn", seeds=1, steps=STEPS, **folders)
    assert failed.endswith("was stopped before its end")
    assert told.read_text() == "1 4294967296 8589934592"


# One trial


def test_a_stopped_trial_goes_on_from_its_checkpoint(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn = Training._learn

    def learn_and_be_told_to_stop(training: Training) -> dict[str, float]:
        metrics = learn(training)
        os.kill(os.getpid(), signal.SIGTERM)
        return metrics

    monkeypatch.setattr(Training, "_learn", learn_and_be_told_to_stop)
    assert run(make_trial(out, minutes=10.0)) is False
    monkeypatch.undo()
    before = read_metrics(out / "pixelcnn-0")[-1]
    assert not (out / "results" / GAME.name / "pixelcnn-0.json").exists()
    trial = make_trial(out, minutes=before["study/cpu_s"] / 60 + 0.005)
    assert run(trial) is True
    result = json.loads(trial.result_path.read_text())
    assert result["updates"] > before["study/updates"]
    assert result["cpu_s"] >= before["study/cpu_s"] + 0.29
    updates = [line["study/updates"] for line in read_metrics(out / "pixelcnn-0", "train")]
    assert updates == sorted(set(updates))
    assert before["study/updates"] in updates


def test_a_resumed_trial_equals_one_that_never_stopped(out: Path) -> None:
    with training(make_trial(out, seed=1)) as whole:
        begin = whole.learner.state_dict()
        whole._learn()
        whole._learn()
        wanted = whole.learner.model_state()
    with training(make_trial(out, seed=2)) as half:
        half.learner.load_state_dict(begin)
        half._learn()
        half._save()
    with training(make_trial(out, seed=2)) as again:
        assert (again.cpu_s, again.rows) == (half.cpu_s, half.rows) and again.cpu_s > 0
        again._learn()
        assert again.learner.updates == whole.learner.updates == 8
        for name, value in again.learner.model_state().items():
            assert torch.equal(value, wanted[name]), name


def test_a_trial_names_every_commit_it_was_trained_with(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for commit in ("abc", "abc", "def"):
        monkeypatch.setattr(trial_module.provenance, "commit", lambda commit=commit: commit)
        with training(make_trial(out)) as one:
            monkeypatch.setattr(trial_module.provenance, "commit", lambda: "later")
            one._learn()
            one._save()
    assert one.spent()["commit"] == "abc, def"


def test_lines_beyond_the_checkpoint_are_told_once(out: Path) -> None:
    with training(make_trial(out)) as first:
        first._tell(first._learn())
        first._save()
        first._tell(first._learn())  # and then the process dies
    with training(make_trial(out)):
        pass
    assert [line["study/updates"] for line in read_metrics(out / "pixelcnn-0")] == [4]


# What is there already


def write_trial(trial: Trial, measures: dict[str, Any] | None = None, **changes: Any) -> None:
    result = {
        "game": trial.game,
        "arm": trial.arm,
        "seed": trial.seed,
        "command": "x",
        "commit": "abc",
        "machine": {"cpu": "a processor", "cores": 2},
        "cpu_minutes": trial.minutes,
        "cpu_s": 60 * trial.minutes,
        "wall_time_s": 60 * trial.minutes,
        "updates": 10,
        "rows": 80,
        "parameters": 1000,
        "overrides": list(trial.overrides),
        "settings": trial.settings(GAME.env),
        "measures_version": MEASURES,
        "measures": measures or {},
        "curve": {"cpu_minutes": [1.0, 2.0], "nats_per_frame": [9.0, 8.0], "kl": [1.0, None]},
    }
    trial.result_path.parent.mkdir(parents=True, exist_ok=True)
    trial.result_path.write_text(json.dumps({**result, **changes}))


def test_a_result_of_the_same_settings_and_budget_is_kept(tmp_path: Path) -> None:
    trial = make_trial(tmp_path)
    write_trial(trial)
    refuse_others([trial], GAME.env)
    assert is_done(trial)


def test_a_result_of_older_measures_is_not_done_and_in_no_table(tmp_path: Path) -> None:
    trial, new = make_trial(tmp_path), make_trial(tmp_path, arm="deconv_mse")
    write_trial(trial, {"ball_recall": 1.0}, measures_version=MEASURES - 1)
    write_trial(new, {"ball_recall": 0.5})
    refuse_others([trial], GAME.env)
    assert not is_done(trial) and is_done(new)
    assert list(aggregate(GAME.name, tmp_path / "results")["arms"]) == ["deconv_mse"]
    result = json.loads(trial.result_path.read_text())
    del result["measures_version"]  # as the first version wrote it
    trial.result_path.write_text(json.dumps(result))
    assert not is_done(trial)


def test_a_result_of_older_measures_is_measured_anew_without_training(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = make_trial(out)
    measured: list[Sizes] = []

    def measure(*arguments: Any) -> dict[str, Any]:
        measured.append(arguments[-1])
        return {"ball_recall": float(len(measured))}

    monkeypatch.setattr(trial_module, "measure", measure)
    monkeypatch.setattr(trial_module, "draw", lambda *_: None)
    assert run(trial) is True
    first = json.loads(trial.result_path.read_text())
    assert first["measures_version"] == MEASURES
    assert measured[0].timed == (2, 4)  # the shape of its own batches
    trial.result_path.write_text(json.dumps({**first, "measures_version": MEASURES - 1}))
    learn = Training._learn

    def no_training(_: Training) -> dict[str, float]:
        raise AssertionError("a finished trial was trained again")

    monkeypatch.setattr(Training, "_learn", no_training)
    assert run(trial) is True
    again = json.loads(trial.result_path.read_text())
    assert again["measures"] == {"ball_recall": 2.0} and again["measures_version"] == MEASURES
    assert (again["updates"], again["cpu_s"]) == (first["updates"], first["cpu_s"])
    assert again["curve"] == first["curve"]
    assert run(trial) is True and len(measured) == 2  # nothing is left to do
    # without its checkpoint it is trained from the beginning
    trial.result_path.write_text(json.dumps({**first, "measures_version": MEASURES - 1}))
    shutil.rmtree(trial.run_dir)
    monkeypatch.setattr(Training, "_learn", learn)
    assert run(trial) is True
    last = json.loads(trial.result_path.read_text())
    assert last["updates"] > 0 and last["measures"] == {"ball_recall": 3.0}


def test_a_result_of_a_smaller_budget_goes_on(tmp_path: Path) -> None:
    write_trial(make_trial(tmp_path, minutes=1.0))
    longer = make_trial(tmp_path, minutes=2.0)
    refuse_others([longer], GAME.env)
    assert not is_done(longer)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"minutes": 0.001}, "minutes: 0.005 became 0.001"),
        ({"steps": 900}, "steps: 800 became 900"),
        ({"quick": False}, "quick: True became False"),
        ({"overrides": (*TINY, "learn_model.lr=0.5")}, r"learn_model.lr: 0.\d+ became 0.5"),
    ],
)
def test_a_result_of_other_settings_is_refused_unless_forced(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    write_trial(make_trial(tmp_path))
    other = make_trial(tmp_path, **changes)
    with pytest.raises(ConfigError, match=f"{said}.*--force"):
        refuse_others([other], GAME.env)
    refuse_others([other], GAME.env, force=True)
    assert not other.result_path.exists()


def test_a_run_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    trial = make_trial(tmp_path)
    trial.run_dir.mkdir(parents=True)
    changed = {**trial.settings(GAME.env), "steps": 5}
    (trial.run_dir / "settings.json").write_text(json.dumps(changed))
    with pytest.raises(ConfigError, match="steps: 5 became 800"):
        refuse_others([trial], GAME.env)


def test_a_setting_that_did_not_exist_counts_with_its_default(tmp_path: Path) -> None:
    new = make_trial(tmp_path).settings(GAME.env)
    old = json.loads(json.dumps(new))
    del old["world_model"]["kl"]["warmup_updates"]
    assert changed_settings(old, new) == []
    old["world_model"]["gone"] = 1
    assert changed_settings(old, new) != []


def test_a_file_that_is_no_result_is_named(tmp_path: Path) -> None:
    trial = make_trial(tmp_path)
    trial.result_path.parent.mkdir(parents=True)
    trial.result_path.write_text("{}")
    with pytest.raises(ConfigError, match=r"pixelcnn-0\.json: expected the result of a trial"):
        refuse_others([trial], GAME.env)


# Arms and order


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_is_a_valid_config(arm: str, tmp_path: Path) -> None:
    config = make_trial(tmp_path, arm=arm, overrides=()).config(GAME.env)
    assert (config.env, config.env_steps, config.seed) == (GAME.env, STEPS, 0)


def test_main_arms_are_the_four_of_the_claim() -> None:
    assert choose("main") == [
        *("world_models", "deconv_categorical", "pixelcnn", "pixelcnn_stagewise")
    ]
    assert choose("all") == list(ARMS)
    assert {(ARMS[name].seeds, ARMS[name].minutes) for name in choose("main")} == {(3, 30.0)}
    assert {(a.seeds, a.minutes) for a in ARMS.values() if not a.main} == {(1, 15.0)}


def test_the_sweep_varies_layers_alone(tmp_path: Path) -> None:
    configs = [make_trial(tmp_path, arm=arm, overrides=()).config(GAME.env) for arm in SWEEP]
    assert [config.world_model.decoder.layers for config in configs] == [1, 2, 3, 5, 8]
    rest = {c.world_model.decoder.model_copy(update={"layers": 0}) for c in configs}
    assert len(rest) == 1


def test_the_reference_of_the_variants_has_the_settings_of_the_main_arm(tmp_path: Path) -> None:
    reference, main_arm = (
        make_trial(tmp_path, arm=arm, overrides=()).settings(GAME.env)
        for arm in (REFERENCE, "pixelcnn")
    )
    assert reference == main_arm
    assert (ARMS[REFERENCE].seeds, ARMS[REFERENCE].minutes) == (1, 15.0)


def test_the_world_models_arm_is_that_of_the_shipped_config(tmp_path: Path) -> None:
    from mbrl.config import load

    shipped = load(ROOT / "configs" / "world_models_2018.yaml").world_model
    arm = make_trial(tmp_path, arm="world_models", overrides=()).config(GAME.env).world_model
    assert (arm.encoder.kind, arm.joint) == (shipped.encoder.kind, shipped.joint)
    assert (arm.code, arm.kl) == (shipped.code, shipped.kl)
    assert arm.decoder.kind == shipped.decoder.kind == "world_models"


def test_every_main_arm_has_its_first_seed_before_any_has_a_second(tmp_path: Path) -> None:
    trials = plan(
        "pong",
        ["pixelcnn_1", "pixelcnn", "world_models"],
        seeds=None,
        minutes=None,
        steps=1000,
        overrides=(),
        out=tmp_path,
        results=tmp_path,
    )
    assert [trial.name for trial in trials] == [
        *("pixelcnn-0", "world_models-0", "pixelcnn-1", "world_models-1"),
        *("pixelcnn-2", "world_models-2", "pixelcnn_1-0"),
    ]
    assert [trial.minutes for trial in trials] == [30.0] * 6 + [15.0]


# Numbers


def test_summary_has_mean_interval_and_every_seed() -> None:
    seeds = [
        {"ball_recall": 0.5, "drift": {"15": {"position_px": 2.0}}, "flat/name": 1.0},
        {"ball_recall": 0.7, "drift": {"15": {"position_px": None}}, "flat/name": 1.0},
        {"ball_recall": 0.9, "drift": {"15": {"position_px": 4.0}}, "flat/name": 1.0},
    ]
    summary = summarise(seeds)
    ball = summary["ball_recall"]
    assert ball["mean"] == pytest.approx(0.7)
    assert ball["per_seed"] == [0.5, 0.7, 0.9]
    low, high = ball["ci95"]
    assert 0.5 <= low < 0.7 < high <= 0.9
    # two seeds have the distance: a mean, no interval
    assert look_up(summary, "drift/15/position_px") == {
        "mean": 3.0,
        "ci95": None,
        "per_seed": [2.0, None, 4.0],
    }
    assert look_up(summary, "flat/name") == {"mean": 1.0, "ci95": [1.0, 1.0], "per_seed": [1.0] * 3}
    assert look_up(summary, "drift") is None and look_up(summary, "nothing/here") is None


def test_aggregate_reads_all_trials_that_are_there(tmp_path: Path) -> None:
    for seed, recall in ((1, 0.5), (0, 1.0)):
        write_trial(make_trial(tmp_path, seed=seed, minutes=30.0), {"ball_recall": recall})
    wm = make_trial(tmp_path, arm="world_models", minutes=15.0)
    write_trial(wm, {"ball_recall": None}, commit="abc, def-dirty")
    summary = aggregate(GAME.name, tmp_path / "results")
    assert list(summary["arms"]) == ["world_models", "pixelcnn"]  # the order of ARMS
    assert summary["arms"]["pixelcnn"]["ball_recall"]["per_seed"] == [1.0, 0.5]
    assert summary["arms"]["world_models"]["ball_recall"]["mean"] is None
    assert summary["runs"]["pixelcnn"]["seeds"] == [0, 1]
    assert summary["commit"] == "abc, def-dirty"
    overrides = " ".join(f"'{one}'" if " " in one or "[" in one else one for one in TINY)
    wanted = [("world_models", 1, 15), ("pixelcnn", 2, 30)]
    assert summary["command"] == " && ".join(
        f"mbrl bench fidelity synthetic_pong {overrides} --arms {arm} --seeds {seeds} "
        f"--minutes {minutes} --steps 800 --quick"
        for arm, seeds, minutes in wanted
    )
    assert {"commit", "machine", "seeds"} <= summary.keys()
    assert json.loads((tmp_path / "results" / f"{GAME.name}.json").read_text()) == summary


def test_aggregate_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected results of trials, found none"):
        aggregate("pong", tmp_path)


def test_a_cell_says_how_sure_it_is() -> None:
    sure = {"mean": 0.975, "ci95": [0.96, 0.99], "per_seed": [0.96, 0.975, 0.99]}
    assert cell(sure, 2) == "0.97 (0.96–0.99)"
    assert cell({**sure, "ci95": None}, 1) == "1.0"
    assert cell({"mean": None, "ci95": None, "per_seed": [None]}, 2) == "–"
    assert cell(None, 2) == "–"


def test_tables_leave_out_what_no_arm_has(tmp_path: Path) -> None:
    write_trial(make_trial(tmp_path, minutes=30.0), {"ball_recall": 1.0, "nats_per_frame": 4.26})
    write_trial(make_trial(tmp_path, arm="pixelcnn_8"), {"ball_recall": 0.0})
    summary = aggregate(GAME.name, tmp_path / "results")
    rows = summary_rows(summary)
    assert rows.head == ["arm", "runs", "updates", "ball recall", "KL, nats"]
    assert rows.rows == [
        ["PixelCNN", "1 × 30", "10", "1.00", "4.3"],
        ["PixelCNN, 8 layers", "1 × 0.005", "10", "0.00", "–"],  # a zero is a number
    ]
    assert markdown_table(rows).splitlines()[2] == "| PixelCNN | 1 × 30 | 10 | 1.00 | 4.3 |"
    assert set(tables(summary)) == {"main", "variants"}
    page = write_report(tmp_path, summary, read_trials(GAME.name, tmp_path / "results"))
    assert "Fewer than three seeds" in page.read_text()


def test_tables_name_the_updates_of_all_seeds(tmp_path: Path) -> None:
    for seed, updates in enumerate((9800, 10100, 9900)):
        write_trial(make_trial(tmp_path, seed=seed), {"ball_recall": 1.0}, updates=updates)
    summary = aggregate(GAME.name, tmp_path / "results")
    assert summary_rows(summary).rows[0][2] == "9,800–10,100"


def test_tables_have_what_stands_beside_recall(tmp_path: Path) -> None:
    def scores(precision: float, chance: float) -> dict[str, float]:
        return {"precision": precision, "shuffled_recall": chance, "near": 1.0, "present": 1.0}

    measures = {
        "own_paddle_recall": 0.8,
        "ball_recall": 0.9,
        "position_px": 1.2,
        "objects": {"ball": scores(0.7, 0.1), "own_paddle": scores(0.6, 0.3)},
        "probes": {"z": {"f1": {"mean": 0.4}}, "zh": {"f1": {"mean": 0.5}}},
        "drift": {"15": {"ball_recall": 0.5, "ball_present": 0.95}},
    }
    write_trial(make_trial(tmp_path), measures)
    made = tables(aggregate(GAME.name, tmp_path / "results"))
    main = made["main"][1]
    assert dict(zip(main.head[3:], main.rows[0][3:], strict=True)) == {
        **{"ball recall": "0.90", "own paddle recall": "0.80"},
        **{"ball precision": "0.70", "own paddle precision": "0.60", "strongest, px": "1.2"},
        **{"ball recall after 15": "0.50", "ball present after 15": "0.95"},
    }
    beside = made["objects"][1]
    assert beside.head[3:5] == ["ball recall by chance", "own paddle recall by chance"]
    assert beside.rows[0][3:5] == ["0.10", "0.30"]
    assert made["code"][1].head[3:] == ["F1 from z alone", "from [z, h]"]
    assert made["drift"][1].head[3:] == ["ball recall, 15", "present, 15"]


def test_drift_figure_shows_every_arm_main_ones_on_top(tmp_path: Path) -> None:
    measures = {"ball_recall": 1.0, "drift": {"1": {"ball_recall": 1.0}, "15": {"ball_recall": 0}}}
    for arm in ("pixelcnn", "pixelcnn_8", "deconv_mse"):
        write_trial(make_trial(tmp_path, arm=arm), measures)
    figure = drift_figure(aggregate(GAME.name, tmp_path / "results"))
    assert figure is not None
    lines = figure.axes[0].get_lines()
    assert [line.get_linewidth() for line in lines] == [0.9, 0.9, 2.2]
    [legend] = figure.legends
    titles = {text.get_text() for text in legend.get_texts()}
    assert titles == {"PixelCNN", "variants of the PixelCNN", ARMS["deconv_mse"].title}


# Pictures


def some_pictures(level: int) -> Pictures:
    images = np.full((2, 4, 4, 1), level, np.uint8)
    images[0, 1, 2] = 255
    strips = np.stack([images, images])[:, :2]
    return Pictures(images, images, strips, strips, np.array([1, 5]))


def test_sheets_enlarge_every_pixel_and_smooth_none(tmp_path: Path) -> None:
    path = sample_sheet(tmp_path / "a.png", {"dark": some_pictures(10)}, scale=4)
    with Image.open(path) as image:
        pixels = np.asarray(image)
    white, dark = (pixels == 255).all(-1), (pixels == 10).all(-1)
    assert dark.sum() == 2 * (2 * 16 - 1) * 16  # two rows of two images, less the bright pixel
    rows, columns = np.nonzero(dark)
    corner = rows.min(), columns.min()
    assert white[corner[0] + 4 : corner[0] + 8, corner[1] + 8 : corner[1] + 12].all()


def test_strips_have_a_column_per_horizon(tmp_path: Path) -> None:
    arms = {"one": some_pictures(10), "another with a long title": some_pictures(20)}
    with Image.open(strip_sheet(tmp_path / "b.png", arms, 1, scale=4)) as image:
        pixels = np.asarray(image)
    assert (pixels == 20).all(-1).sum() == 2 * 16 * 16 - 16


def test_pictures_come_back_as_they_were_written(tmp_path: Path) -> None:
    pictures = some_pictures(7)
    pictures.write(tmp_path / "pictures.npz")
    again = Pictures.read(tmp_path / "pictures.npz")
    assert all(np.array_equal(vars(again)[name], value) for name, value in vars(pictures).items())


# The page


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_page_takes_tables_and_pictures_from_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = load_generator()
    write_trial(make_trial(tmp_path, minutes=30.0), {"ball_recall": 0.5})
    aggregate(GAME.name, tmp_path / "results")
    monkeypatch.setattr(generate, "FIDELITY_RESULTS", tmp_path / "results")
    monkeypatch.setattr(generate, "PICTURES", tmp_path / "docs")
    study_folder = tmp_path / GAME.name
    sample_sheet(study_folder / "figures" / "samples.png", {"a": some_pictures(3)})
    generate.copy_pictures(study_folder)
    parts = ("main", "variants", "origin", "pictures")
    page = "before\n" + "".join(
        f"<!-- fidelity {GAME.name} {part} -->\n<!-- end -->\n" for part in parts
    )
    made = generate.fidelity(page)
    assert made.startswith("before\n<!-- fidelity synthetic_pong main -->\n| arm | runs |")
    assert "| PixelCNN | 1 × 30 | 10 | 0.50 |" in made
    assert "None recorded yet." in made  # there are no variants
    assert "commit `abc`; 2 cores, a processor" in made
    assert "](fidelity/synthetic_pong_samples.png)" in made
    assert generate.fidelity(made) == made


def test_page_without_parts_or_with_an_unknown_one_is_refused(tmp_path: Path) -> None:
    generate = load_generator()
    with pytest.raises(ValueError, match="found none"):
        generate.fidelity("nothing here")
    with pytest.raises(ValueError, match="expected a part out of main, variants"):
        generate.fidelity("<!-- fidelity pong mains -->\n<!-- end -->\n")
    with pytest.raises(FileNotFoundError, match="expected a study's folder"):
        generate.copy_pictures(tmp_path)
