"""What every study shares: options, plans, kept results, budgets and resumes."""

import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import fidelity_trials
import flow_trials
import pytest
import torch
from fidelity_trials import write_trial
from rich.console import Console

from mbrl.__main__ import _parser, main
from mbrl.errors import ConfigError, MbrlError
from mbrl.run import checkpoint, provenance
from mbrl.run.metrics import read_metrics
from mbrl.studies import study as study_module
from mbrl.studies.arms import Arm, choose, in_order
from mbrl.studies.bench import STUDIES, study_of
from mbrl.studies.fidelity.frames import load_frames
from mbrl.studies.fidelity.pictures import Pictures
from mbrl.studies.fidelity.supervised import SupervisedTraining
from mbrl.studies.fidelity.train import frames_of
from mbrl.studies.flows.images import Source, load_images
from mbrl.studies.flows.train import Training as FlowTraining
from mbrl.studies.options import read_options
from mbrl.studies.results import look_up, summarise
from mbrl.studies.training import BudgetedTraining, run
from mbrl.studies.trial import Trial, refuse_changed
from mbrl.studies.world_model import WorldModelTraining as WorldTraining
from mbrl.world_model.settings import NormalisedSettings

Make = Callable[..., Trial]
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(params=sorted(STUDIES))
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Makes tiny trials of either study, or of the arm with labels, in a folder of the test."""

    def fidelity(out: Path = tmp_path / "out", **changes: Any) -> Trial:
        return fidelity_trials.make_trial(out, **changes)

    def flow(out: Path = tmp_path / "out", **changes: Any) -> Trial:
        path = tmp_path / "some.npz"
        source = Source(path=path if path.exists() else flow_trials.write_images(path))
        return flow_trials.make_trial(source, out, **changes)

    supervised = partial(fidelity, arm="supervised", overrides=())
    return {"fidelity": fidelity, "flow": flow, "supervised": supervised}[request.param]


def training(trial: Any) -> BudgetedTraining:
    if trial.arm == "supervised":
        frames = load_frames(frames_of(trial)[0])
        small = NormalisedSettings(channels=(4, 4), hidden=16)
        return SupervisedTraining(trial, fidelity_trials.GAME, small, frames)
    if trial.study == "fidelity":
        return WorldTraining(trial, trial.config(), frames_of(trial)[0])
    return FlowTraining(trial, load_images(trial.source))


def weights(trained: Any) -> dict[str, torch.Tensor]:
    if isinstance(trained, WorldTraining):
        return trained.learner.model_state()
    if isinstance(trained, SupervisedTraining):
        return trained.reader.state_dict()
    return trained.flow.state_dict()


OTHER_SETTINGS: dict[str, list[tuple[dict[str, Any], str]]] = {
    "fidelity": [
        ({"steps": 900}, "steps: 800 became 900"),
        ({"device": "cuda:1"}, "device: None became cuda"),
        ({"overrides": ("learn_model.lr=0.5",)}, r"learn_model.lr: 0.\d+ became 0.5"),
    ],
    "flow": [({"overrides": ("train.lr=0.5",)}, "train.lr: 0.002 became 0.5")],
}


# Arms and plans


ARMS = {
    "variant": Arm("a variant"),
    "first": Arm("first", main=True),
    "gone": Arm("gone", retired="its setting is gone"),
    "second": Arm("second", main=True, budget=(20.0, 5.0)),
}


def test_arms_are_chosen_by_role_or_by_name() -> None:
    assert choose("main", ARMS) == ["first", "second"]
    assert choose("all", ARMS) == ["variant", "first", "second"]
    assert choose("second, variant", ARMS) == ["second", "variant"]
    with pytest.raises(ConfigError, match=r"can be trained, got gone: its setting is gone"):
        choose("first,gone", ARMS)


def test_every_main_arm_has_its_first_seed_before_any_has_a_second() -> None:
    order = [*in_order(["variant", "first", "second"], ARMS, None)]
    assert order[:4] == [("first", 0), ("second", 0), ("first", 1), ("second", 1)]
    assert order[4:] == [("first", 2), ("second", 2), ("variant", 0)]
    assert [*in_order(["variant"], ARMS, 2)] == [("variant", 0), ("variant", 1)]
    assert [arm.minutes for arm in ARMS.values()] == [15.0, 30.0, 15.0, 20.0]


# Options of the commands


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fidelity"], "game: expected a value, got none"),
        (["fidelity", "pongg"], "expected a game out of pong, breakout.*did you mean pong?"),
        (["fidelity", "pong", "--arms", "pixelcnn,pixelcnn"], "distinct names"),
        (["fidelity", "pong", "env.id=x"], "expected overrides of world_model"),
        (["fidelity", "pong", "world_model.hiden=3"], "did you mean world_model.hidden"),
        (["fidelity", "pong", "--steps", "100"], "--steps: expected greater.* 800, got 100"),
        (["fidelity", "pong", "--device", "cuda:99"], "one that PyTorch finds, got cuda:99"),
        (["fidelity", "pong", "--device", "auto"], "expected cpu, cuda or cuda:N, got auto"),
        (
            ["fidelity", "car_racing", "--arms", "supervised"],
            "expected a game with labels, got car_racing",
        ),
        (
            ["fidelity", "pong", "world_model.encoder.deviation=3.0", "--arms", "supervised"],
            "expected overrides of world_model.encoder.channels, .*encoder.deviation=3.0",
        ),
        (["flow"], "expected a game, or --images.*neither"),
        (["flow", "pong", "--arms", "level,glow"], "--arms: expected main, all or distinct names"),
        (["flow", "pong", "flow.widht=3"], "did you mean flow.width"),
        (["flow", "pong", "--bits", "9"], "1 to 8 bits"),
        (["flow", "pong", "--size", "0"], "--size: expected greater.* 1, got 0"),
        (["flow", "--images", "nowhere"], "--images nowhere: expected a folder.*got nothing there"),
        *(
            ([name, "pong", *words], said)
            for name in STUDIES
            for words, said in (
                (["breakout"], "expected one game.*got pong and breakout"),
                (["--seeds", "0"], "--seeds: expected greater.* 1, got 0"),
                (["--minutes", "0"], "--minutes: expected greater than 0, got 0"),
                (["--jobs", "0"], "--jobs: expected greater.* 1, got 0"),
                (["--updates", "0"], "--updates: expected greater.* 1, got 0"),
            )
        ),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_sentence(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = ["--out", str(tmp_path / "out"), "--results", str(tmp_path / "results")]
    assert main(["bench", *words, *folders]) == 2
    error = capsys.readouterr().err.strip()
    first, _, second = said.partition(".*")
    assert error.startswith("mbrl: ") and first in error and second in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"study": "fidelity", "game": "pong", "steps": 900, "device": "cuda", "arm": "pixelcnn_8"},
        {"study": "flow", "source": Source(game="pong", size=32, bits=8, steps=900)},
        {"study": "flow", "source": Source(path=Path("some.npz")), "quick": False},
    ],
)
def test_the_command_of_a_trial_makes_it_again(changes: dict[str, Any], tmp_path: Path) -> None:
    study = study_of(changes["study"])
    own = {name: value for name, value in changes.items() if name != "study"}
    known = {"seed": 1, "minutes": 0.5, "updates": 7, "quick": True, "overrides": ("a.b=c d",)}
    folders = {"out": tmp_path, "results": tmp_path}
    first = "pixelcnn" if changes["study"] == "fidelity" else "level"
    trial = study.trial.model_validate({"arm": first, **known, **folders, **own})
    given = vars(_parser().parse_args(trial.command()[1:])) | folders
    planned = study.plan(given, read_options(study.options, given), Console(quiet=True))
    assert len(planned) == 2 and planned[1] == trial


def test_folders_beside_the_usual_ones_are_in_the_command_of_a_trial(make: Make) -> None:
    trial = make()
    assert "--out" not in trial.command()
    beside = make(results=Path("somewhere") / f"{trial.home}_long")
    long = f"{trial.home}_long"
    folders = ["--results", f"results/{long}", "--out", f"runs/{long}/{trial.subject}"]
    assert beside.command()[-4:] == folders


def test_a_failed_trial_is_named_the_others_go_on_and_the_exit_code_is_one(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("OMP_NUM_THREADS", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
    code = (
        "import os, sys\n"
        f"print(*(os.environ[name] for name in {names}), file=open({str(tmp_path / 'ran')!r}, 'a'))"
        "\nsys.exit('no more memory')"
    )
    monkeypatch.setattr(study_module, "process", lambda *_: [sys.executable, "-c", code])
    trial = make()
    study = study_of(trial.study)
    monkeypatch.setattr(type(study), "prepare", lambda *_: None)
    monkeypatch.setattr(type(study), "after", lambda *_: [])
    arms = {"fidelity": "pixelcnn,pixelcnn_1", "flow": "none,level"}[trial.study]
    words = ["bench", trial.study, "synthetic_pong", *trial.overrides, "--arms", arms]
    words += ["--seeds", "2", "--out", str(trial.out), "--results", str(trial.results)]
    assert main(words) == 1
    at_once, said = capsys.readouterr()
    for one in (at_once, said):
        assert one.count("failed with exit code 1: no more memory") == 4
    assert "the same command continues" in said
    # each had one core and keeps its memory
    assert (tmp_path / "ran").read_text() == 4 * "1 4294967296 8589934592\n"


@pytest.mark.timeout(400)
def test_the_command_trains_measures_and_reports_and_then_has_nothing_left_to_do(
    make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trial = make()
    words = [*trial.words()[1:], "--arms", trial.arm, "--seeds", "1", "--quick"]
    words += ["--minutes", f"{trial.minutes}", "--out", str(trial.out)]
    words += ["--results", str(trial.results)]
    if isinstance(trial, flow_trials.Trial):
        words += ["--images", str(trial.source.path), "--no-costs"]
    else:
        words += ["--steps", "800"]
    done = subprocess.run(
        [sys.executable, "-m", "mbrl", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(trial.result_path.read_text())
    assert {"command", "commit", "machine", "seed", "settings", "curve"} <= result.keys()
    assert result["command"] == shlex.join(trial.command())
    assert str(trial.out.parent) not in json.dumps(result)
    assert result["cpu_s"] >= 60 * trial.minutes
    assert result["curve"]["cpu_minutes"][-1] == pytest.approx(result["cpu_s"] / 60, abs=2e-3)
    summary = json.loads((trial.results / f"{trial.subject}.json").read_text())
    assert list(summary["arms"]) == [trial.arm]
    page = (trial.out / "report.html").read_text()
    assert summary["runs"][trial.arm]["title"] in page and "not to be quoted" in page
    assert 'src="http' not in page and 'href="http' not in page
    figures = trial.out / "figures"
    {"fidelity": of_worlds, "flow": of_flows}[trial.study](result, summary, figures)

    def nothing(*_: object, **__: object) -> None:
        raise AssertionError("a finished trial was started again")

    monkeypatch.setattr(subprocess, "Popen", nothing)
    monkeypatch.setenv("MBRL_COMMIT", "unknown")
    assert main(words) == 0
    assert f"{trial.title}: done before" in capsys.readouterr().out
    # with other settings, or other images of the same name, nothing is done at all
    setting, said = OTHER_SETTINGS[trial.study][-1]
    assert main([*words[:3], *setting["overrides"], *words[3:]]) == 2
    assert re.search(said, capsys.readouterr().err)
    if isinstance(trial, flow_trials.Trial) and trial.source.path:
        flow_trials.write_images(trial.source.path, seed=1)
        assert main(words) == 2
        assert "holds results of other images called some" in capsys.readouterr().err


def expect_pictures(figures: Path, *names: str) -> None:
    for name in names:
        assert (figures / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def of_worlds(result: Any, summary: Any, figures: Path) -> None:
    """What a world model's trial leaves behind."""
    assert result["rows"] == result["updates"] * 2 * 4
    assert 0 <= result["measures"]["ball_recall"] <= 1
    assert look_up(summary["arms"]["pixelcnn"], "drift/15/ball_recall") is not None
    expect_pictures(figures, "samples", "dream_1", "drift")
    pictures = Pictures.read(figures.parent / "pixelcnn-0" / "pictures.npz")
    assert pictures.real.shape == pictures.samples.shape
    assert pictures.strip_real.shape == pictures.strips.shape


def of_flows(result: Any, summary: Any, figures: Path) -> None:
    """What a flow's trial leaves behind."""
    assert result["rows"] == 4 * result["updates"]
    assert 0 < result["measures"]["bits_per_dim"] < 20
    # a level that no training image has fills 3 millionths of its pixel's distribution, and float32
    # may come back beside it; that seen ones return exactly is shown in test_flow.py
    assert result["measures"]["round_trip"] == pytest.approx(1, abs=0.01)
    assert summary["about"]["baselines"]["uniform"] == 5 and summary["about"]["train"] == 54
    expect_pictures(figures, "samples", "interpolation")


# What is there already


def test_a_result_of_the_same_settings_budget_and_measures_is_kept(make: Make) -> None:
    trial, longer = make(), make(minutes=1.0)
    assert not trial.is_done()
    write_trial(trial)
    refuse_changed([trial, longer])
    assert trial.is_done()
    assert not longer.is_done()  # goes on
    result = json.loads(trial.result_path.read_text())
    del result["measures_version"]  # as the first version wrote it
    trial.result_path.write_text(json.dumps(result))
    refuse_changed([trial])
    assert not trial.is_done()


def test_a_result_of_other_settings_is_refused_unless_forced(make: Make) -> None:
    trial = make()
    for changes, said in (
        ({"minutes": 0.001}, "minutes: 0.00. became 0.001"),
        ({"quick": False}, "quick: True became False"),
        ({"updates": 5}, "updates: None became 5"),
        *OTHER_SETTINGS[trial.study],
    ):
        write_trial(trial)
        if "overrides" in changes:
            changes = {"overrides": (*trial.overrides, *changes["overrides"])}
        other = make(**changes)
        with pytest.raises(ConfigError, match=f"bench {trial.study}: .*{said}.*--force"):
            refuse_changed([other])
        refuse_changed([other], force=True)
        assert not other.result_path.exists()
    trial.run_dir.mkdir(parents=True)
    changed = {**trial.settings(), "seed": 5}
    (trial.run_dir / "settings.json").write_text(json.dumps(changed))
    with pytest.raises(ConfigError, match="seed: 5 became 0"):  # in the run folder alone
        refuse_changed([trial])


MADE = sorted((ROOT / "results").glob("fidelity*/*/*-[0-9].json"))


def test_results_of_the_repository_still_have_the_settings_of_their_arms() -> None:
    changed = {}
    for path in MADE:
        result = json.loads(path.read_text(encoding="utf-8"))
        same = {name: result[name] for name in ("game", "arm", "seed", "overrides")}
        given = {**result["settings"], **same, "minutes": result["cpu_minutes"]}
        fields = {name: given[name] for name in fidelity_trials.Trial.model_fields if name in given}
        trial = fidelity_trials.Trial(**fields, out=Path("out"), results=Path("results"))
        if not trial.known_arms[trial.arm].retired and (found := trial.changes(result["settings"])):
            changed[path.name] = found
    assert changed == {} and len(MADE) > 70


def test_a_setting_that_did_not_exist_counts_with_its_default(tmp_path: Path) -> None:
    trial = fidelity_trials.make_trial(tmp_path)
    old = json.loads(json.dumps(trial.settings()))
    del old["world_model"]["kl"]["soft_free_nats"]
    [changed] = trial.changes(old)  # configs/fidelity.yaml sets it
    assert changed.startswith("world_model.kl.soft_free_nats: None became")
    old = json.loads(json.dumps(trial.settings()))
    del old["world_model"]["posterior"]
    assert trial.changes(old) == []
    old["world_model"]["gone"] = 1
    assert trial.changes(old) != []


def test_a_file_that_is_no_result_is_named_and_a_summary_of_nothing_refused(make: Make) -> None:
    trial = make()
    with pytest.raises(ConfigError, match="expected results of trials, found none"):
        study_of(trial.study).aggregate(trial.subject, trial.results)
    trial.result_path.parent.mkdir(parents=True)
    trial.result_path.write_text("{}")
    with pytest.raises(MbrlError, match=rf"{trial.name}\.json: expected a result with arm, seed"):
        refuse_changed([trial])


def test_summary_has_mean_interval_and_every_seed() -> None:
    pairs = ((0.5, 2.0), (0.7, None), (0.9, 4.0))
    summary = summarise(
        [{"recall": a, "drift": {"15": {"position_px": b}}, "flat/name": 1.0} for a, b in pairs]
    )
    recall = summary["recall"]
    assert (recall["mean"], recall["per_seed"]) == (pytest.approx(0.7), [0.5, 0.7, 0.9])
    low, high = recall["ci95"]
    assert 0.5 <= low < 0.7 < high <= 0.9
    # two seeds have the distance: a mean, no interval
    position = {"mean": 3.0, "ci95": None, "per_seed": [2.0, None, 4.0]}
    assert look_up(summary, "drift/15/position_px") == position
    assert look_up(summary, "flat/name") == {"mean": 1.0, "ci95": [1.0, 1.0], "per_seed": [1.0] * 3}
    assert look_up(summary, "drift") is None and look_up(summary, "nothing/here") is None


# Training


def test_a_stopped_trial_goes_on_from_its_checkpoint(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn = BudgetedTraining.learn

    def learn_and_get_a_signal(training: BudgetedTraining) -> dict[str, float]:
        metrics = learn(training)
        os.kill(os.getpid(), signal.SIGTERM)
        return metrics

    trial = make(minutes=10.0)
    study = study_of(trial.study)
    monkeypatch.setattr(BudgetedTraining, "learn", learn_and_get_a_signal)
    assert study.make(trial) is False
    monkeypatch.undo()
    before = read_metrics(trial.run_dir)[-1]
    assert not trial.result_path.exists()
    trial = make(minutes=before["study/cpu_s"] / 60 + 0.005)
    assert study.make(trial) is True
    result = json.loads(trial.result_path.read_text())
    assert result["updates"] > before["study/updates"]
    assert result["cpu_s"] >= before["study/cpu_s"] + 0.29
    updates = [line["study/updates"] for line in read_metrics(trial.run_dir, "train")]
    assert updates == sorted(set(updates)) and before["study/updates"] in updates


@pytest.mark.parametrize("make", [*sorted(STUDIES), "supervised"], indirect=True)
def test_a_resumed_trial_equals_one_that_never_stopped(make: Make, tmp_path: Path) -> None:
    with training(make(out=tmp_path / "whole")) as whole:
        whole.learn()
        whole.learn()
    with training(make(out=tmp_path / "half")) as half:
        half.learn()
        half.save()
    with training(make(out=tmp_path / "half")) as again:
        assert (again.cpu_s, again.rows) == (half.cpu_s, half.rows) and again.cpu_s > 0
        assert again.updates == half.updates > 0
        again.learn()
        assert again.updates == whole.updates
        torch.testing.assert_close(weights(again), weights(whole), rtol=0, atol=0)


class Waiting(BudgetedTraining):
    """An update waits for a twentieth of a second and learns nothing."""

    updates = 0

    def __init__(self, trial: Trial, **given: Any) -> None:
        super().__init__(trial, env_steps=800, group="x", **given)

    def _update(self) -> dict[str, float]:
        time.sleep(0.05)
        self.updates += 1
        return {}

    def _state(self) -> dict[str, Any]:
        return {"updates": self.updates}

    def _begin(self, state: Any) -> None:
        self.updates = state.get("updates", 0)

    def _in_words(self, metrics: Any) -> str:
        return ""


def waiting(folder: Path, **changes: Any) -> Waiting:
    return Waiting(fidelity_trials.make_trial(folder, **{"minutes": 1.0, **changes}))


def test_a_result_of_older_measures_is_measured_anew_without_training(tmp_path: Path) -> None:
    trial = fidelity_trials.make_trial(tmp_path, minutes=1.0, updates=2)
    counts: list[int] = []

    def measure() -> dict[str, float]:
        counts.append(len(counts) + 1)
        return {"ball_recall": float(counts[-1]), "drift": math.nan}

    def make(trial: Trial) -> dict[str, Any] | None:
        return Waiting(trial).made(torch.nn.Linear(2, 1), measure)

    def made() -> dict[str, Any]:
        assert run(trial, make, {"updates": "study/updates"}, {"digest": "d1"})
        result: dict[str, Any] = json.loads(trial.result_path.read_text())
        return result

    first = made()
    assert (first["updates"], first["parameters"], first["digest"]) == (2, 3, "d1")
    assert first["measures"] == {"ball_recall": 1.0, "drift": None}
    assert made() == first  # nothing is left to do
    older = {**first, "measures_version": trial.measures - 1}
    trial.result_path.write_text(json.dumps(older))
    again = made()
    assert again["measures"]["ball_recall"] == 2.0
    same = ("measures_version", "updates", "cpu_s", "curve")
    assert [again[name] for name in same] == [first[name] for name in same]
    # without its checkpoint it is trained from the beginning
    trial.result_path.write_text(json.dumps(older))
    shutil.rmtree(trial.run_dir)
    last = made()
    assert last["updates"] == 2 and last["measures"]["ball_recall"] == 3.0


def test_a_run_that_was_stopped_beyond_the_budget_is_refused(tmp_path: Path) -> None:
    with waiting(tmp_path, minutes=3.0) as one:
        one.cpu_s = 120.0
        one.save()
    with pytest.raises(ConfigError, match=r"of 2 CPU minutes at most, got one stopped after 2 of"):
        waiting(tmp_path, minutes=2.0)
    for minutes in (2.1, 3.0, 4.0):
        waiting(tmp_path, minutes=minutes).log.close()
    with waiting(tmp_path, minutes=3.0) as one:
        one.cpu_s = 181.0  # its last update went beyond its own budget, which is no other one
        one.save()
    with waiting(tmp_path, minutes=3.0) as one:
        assert one.train() and one.updates == 0


@pytest.mark.parametrize(("device", "least", "most"), [("cpu", 0.0, 0.04), ("meta", 0.1, 5.0)])
def test_waiting_counts_on_a_gpu_and_not_on_a_cpu(
    tmp_path: Path, device: str, least: float, most: float
) -> None:
    trial = fidelity_trials.make_trial(tmp_path, minutes=1.0, updates=2)
    with Waiting(trial, device=torch.device(device)) as one:
        assert one.train()
    assert one.updates == 2 and least <= one.cpu_s < most


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_its_gpu_a_run_is_measured_but_does_not_go_on(tmp_path: Path) -> None:
    with waiting(tmp_path, updates=2, device="cuda") as one:
        with pytest.raises(ConfigError, match="that PyTorch finds, got cuda; it finds no GPU here"):
            one.train()
        one.updates = 2
        assert one.train()


def test_a_trial_names_every_commit_and_machine_it_was_trained_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def here(commit: str, cpu: str) -> None:
        monkeypatch.setattr(provenance, "commit", lambda: commit)
        monkeypatch.setattr(provenance, "machine", lambda _: {"cpu": cpu})

    for commit, cpu in (("abc", "fast"), ("abc", "fast"), ("def", "slow")):
        here(commit, cpu)
        with waiting(tmp_path) as one:
            one.learn()
            one.save()
            spent = one.spent()
        assert ("other_machines" in spent) == (commit == "def")
        assert "trained_here" not in spent
    assert (spent["commit"], spent["measured_by"]) == ("abc, def", "def")
    assert (spent["machine"], spent["other_machines"]) == ({"cpu": "slow"}, [{"cpu": "fast"}])
    # one that is only measured on a third machine, by other code, was not trained there
    here("third", "third")
    with waiting(tmp_path) as one:
        spent = one.spent()
    assert (spent["commit"], spent["measured_by"]) == ("abc, def", "third")
    assert (spent["machine"], spent["trained_here"]) == ({"cpu": "third"}, False)
    assert spent["other_machines"] == [{"cpu": "fast"}, {"cpu": "slow"}]


def test_a_checkpoint_that_does_not_say_who_trained_it_is_unknown(tmp_path: Path) -> None:
    with waiting(tmp_path) as one:
        checkpoint.save(one.checkpoints, 1, {"cpu_s": 1.0, "rows": 8})
    with waiting(tmp_path) as again:
        spent = again.spent()
    assert spent["commit"] == "unknown" and spent["other_machines"] == [{"cpu": "unknown"}]


def test_lines_beyond_the_checkpoint_are_written_once(tmp_path: Path) -> None:
    with waiting(tmp_path) as first:
        first.write_line(first.learn())
        first.save()
        first.write_line(first.learn())  # and then the process dies
    waiting(tmp_path).log.close()
    [line] = read_metrics(tmp_path / "pixelcnn-0")
    assert line["study/updates"] == 1
