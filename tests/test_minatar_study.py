"""Models of MinAtar's games: windows, F1 and clones by hand, and the command from end to end."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from envs import EnvSettings, make_env
from envs.minatar import GameCopy, channel_names
from mbrl.__main__ import _parser, main
from mbrl.errors import ConfigError, MbrlError, ReplayError
from mbrl.studies import bench
from mbrl.studies.bench import study_of
from mbrl.studies.fidelity.frames import Frames, collect_frames, load_frames
from mbrl.studies.fidelity.games import Game
from mbrl.studies.minatar.arms import ARMS
from mbrl.studies.minatar.episodes import episodes_of, games_at, player_of
from mbrl.studies.minatar.games import MINATAR_GAMES
from mbrl.studies.minatar.measure import (
    Count,
    clone_scores,
    copy_scores,
    dream_scores,
    head_report,
    require_windows,
    windows,
)
from mbrl.studies.minatar.trial import Trial
from mbrl.studies.options import read_options
from mbrl.studies.trial import read_result
from mbrl.world_model.latent import ImaginedStep, Latent, Observed

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs"))
TINY = (
    *("world_model.hidden=16", "world_model.prior_hidden=8", "world_model.heads.hidden=8"),
    *("world_model.code={groups: 3, classes: 4}", "world_model.bf16=false"),
    *("world_model.encoder.channels=[4,4]", "world_model.encoder.hidden=16"),
    *("world_model.decoder.layers=1", "world_model.decoder.channels=2"),
    *("world_model.decoder.map_channels=2", "world_model.decoder.hidden=8"),
    *("learn_model.batch_size=2", "learn_model.sequence_length=8"),
)


def make_trial(out: Path, **changes: Any) -> Trial:
    given: dict[str, Any] = {
        "game": "minatar_asterix",
        "arm": "flat",
        "seed": 0,
        "minutes": 1.0,
        "steps": 400,
        "updates": 4,
        "overrides": TINY,
        "out": out,
        "results": out / "results",
        "quick": True,
    }
    return Trial(**{**given, **changes})


# The game, cloned


def playing(sticky: float, game: str = "Breakout") -> Any:
    """An environment after two steps."""
    env = make_env(EnvSettings(id=f"MinAtar/{game}-v1", sticky_actions=sticky))
    env.reset(seed=3)
    for action in (0, 0):
        env.step(action)
    return env


def steps(env: Any, actions: list[int]) -> np.ndarray:
    return np.stack([env.step(action)[0] for action in actions])


def test_a_clone_of_a_game_without_chance_has_the_real_future_for_every_seed() -> None:
    env, actions = playing(sticky=0.0), [1, 2, 2]
    copy = GameCopy(env)
    futures = [copy.play(actions, seed) for seed in (0, 1)]
    assert all(alive.all() for _, alive in futures)
    real = steps(env, actions)
    assert all(np.array_equal(frames, real) for frames, _ in futures)


def test_a_clone_repeats_the_last_action_as_often_as_the_game_does() -> None:
    env = playing(sticky=0.999999)  # every action is the one of before: none, since the reset
    frames, _ = GameCopy(env).play([1, 1, 2], seed=0)
    paddle = np.argwhere(frames[..., 0])[:, 2]
    assert len(set(paddle.tolist())) == 1
    rarely, _ = GameCopy(playing(sticky=0.0)).play([1, 1, 2], seed=0)
    assert len(set(np.argwhere(rarely[..., 0])[:, 2].tolist())) > 1


def test_clones_draw_other_numbers_by_their_seed_and_leave_the_game_alone() -> None:
    env, other = playing(0.1, "Asterix"), playing(0.1, "Asterix")
    copy, actions = GameCopy(env), [0] * 30
    one, again, two = (copy.play(actions, seed)[0] for seed in (1, 1, 2))
    assert np.array_equal(one, again) and not np.array_equal(one, two)
    assert np.array_equal(steps(env, actions), steps(other, actions))


def test_a_clone_that_ended_does_not_go_on_any_more() -> None:
    frames, alive = GameCopy(playing(sticky=0.0)).play([0] * 30, seed=0)
    assert alive[0] and not alive[-1] and (np.diff(alive.astype(int)) <= 0).all()
    assert np.array_equal(frames[-1], frames[-2])


@pytest.mark.parametrize("env_id", MINATAR_GAMES.values())
def test_every_channel_has_a_name(env_id: str) -> None:
    env = make_env(EnvSettings(id=env_id))
    assert len(channel_names(env)) == (env.observation_space.shape or ())[-1]
    env.close()  # type: ignore[no-untyped-call]


# Windows and F1, by hand


def test_f1_counts_cells_of_all_pictures_by_their_weight() -> None:
    real = np.zeros((2, 1, 3, 2), np.uint8)
    real[0, 0, :2, 0] = real[1, 0, 0, 0] = 1
    drawn = np.zeros_like(real)
    drawn[0, 0, 1:, 0] = 1  # one right, one wrong, one missed
    count = Count(["ball", "nothing"])
    count.add(drawn, real)
    assert count.f1["ball"] == pytest.approx(2 * 1 / (2 * 1 + 1 + 2))
    assert np.isnan(count.f1["nothing"])
    weighed = Count(["ball", "nothing"])
    weighed.add(drawn, real, np.array([1.0, 0.0]))  # the second picture no longer counts
    assert weighed.f1["ball"] == pytest.approx(2 * 1 / (2 * 1 + 1 + 1))


WIDTH = 7


def walk(*lengths: int) -> Frames:
    """Episodes in which the one set cell goes right, round and round; each ends by terminating."""
    n = sum(lengths)
    is_first, terminated = np.zeros((2, n), bool)
    is_first[np.cumsum([0, *lengths[:-1]])] = True
    terminated[np.cumsum(lengths) - 1] = True
    return Frames(
        obs=np.eye(WIDTH, dtype=np.uint8)[np.arange(n) % WIDTH].reshape(n, 1, WIDTH, 1),
        prev_action=np.zeros(n, np.int64),
        reward=np.ones(n, np.float32),
        terminated=terminated,
        is_first=is_first,
    )


def test_windows_have_seen_eight_rows_and_do_not_reach_an_end() -> None:
    frames = walk(10, 17, 30)  # the second is too short: 8 rows, 10 steps, and one to end
    found = windows(frames, 100, np.random.default_rng(0))
    # the last episode begins at 27 and ends at 56
    assert found.tolist() == list(range(27 + 7, 56 - 10))
    assert len(windows(frames, 3, np.random.default_rng(0))) == 3
    none = windows(walk(10, 17), 5, np.random.default_rng(0))
    with pytest.raises(ReplayError, match=r"train: expected episodes of 18 rows.*--steps"):
        require_windows("train", none)


class Walker:
    """A model of `walk` that knows the cell's column, in `hidden`, and may stand still."""

    device = torch.device("cpu")
    continue_prob = 1.0

    def __init__(self, stands: bool = False) -> None:
        self.pace = 0 if stands else 1

    def initial(self, n: int, device: torch.device) -> Latent:
        return Latent(torch.zeros(n, 1), torch.zeros(n, 1))

    def inputs(self, batch: Any) -> Any:
        return tuple(map(torch.as_tensor, (batch.prev_action, batch.obs, batch.is_first)))

    def observe(self, latent: Latent, action: Any, obs: Any, first: Any, generator: Any) -> Any:
        column = obs[:, :, 0, :, 0].argmax(-1, keepdim=True).float()  # (B, T, 1)
        return Observed(Latent(column, column), column)

    def imagine_step(self, latent: Latent, action: Any, generator: Any, *, mode: bool) -> Any:
        column = (latent.hidden + self.pace) % WIDTH
        ones = torch.ones(len(column))
        return ImaginedStep(Latent(column, column), 0.25 * ones, self.continue_prob * ones)

    def decode(self, latent: Latent, generator: Any) -> torch.Tensor:
        columns = latent.hidden[:, 0].long()
        return torch.eye(WIDTH, dtype=torch.uint8)[columns].reshape(-1, 1, WIDTH, 1)


def test_a_model_that_moves_as_the_game_does_is_right_and_a_copy_only_at_first() -> None:
    frames = walk(60, 60)
    starts = windows(frames, 50, np.random.default_rng(0))
    moved, reward, going = dream_scores(Walker(), ["ball"], frames, starts, 0)  # type: ignore[arg-type]
    assert moved == {step: {"ball": 1.0} for step in ("0", "1", "5", "10")}
    stood, _, _ = dream_scores(Walker(stands=True), ["ball"], frames, starts, 0)  # type: ignore[arg-type]
    copied = copy_scores(["ball"], frames, starts)
    assert stood == copied == {s: {"ball": float(s == "0")} for s in ("0", "1", "5", "10")}
    model = Walker()
    model.continue_prob = 0.5  # an end too early does not spoil what is drawn, but it is told
    same, reward, going = dream_scores(model, ["ball"], frames, starts, 0)  # type: ignore[arg-type]
    assert same == moved
    assert head_report(model, frames, starts, reward, going, 0) == {  # type: ignore[arg-type]
        "goes_on": 0.5,
        "ends": 0.5,
        "endings": 2.0,
        "paid": 0.25,  # every step pays; of the first episode those from row 16 on, then from 8
        "payments": 44.0 + 52.0,
        "reward_error": 0.75,
        "reward_error_of_none": 1.0,
    }


def test_episodes_played_again_meet_every_row_and_clones_without_chance_are_perfect(
    tmp_path: Path,
) -> None:
    env = EnvSettings(id="MinAtar/Breakout-v1", sticky_actions=0.0)
    _, store = collect_frames(Game("still", env), tmp_path / "f", 80, 1600, seed=4)
    frames = load_frames(store)
    starts = windows(frames, 20, np.random.default_rng(0))
    games = games_at(env, store, frames, starts, 4)
    best = clone_scores(channel_names(make_env(env)), frames, starts, games, 2, seed=0)
    assert {f1 for scores in best.values() for f1 in scores.values()} == {1.0}
    with pytest.raises(ReplayError, match="expected episodes of seed 5, got others"):
        games_at(env, store, frames, starts, 5)
    sticky = env.model_copy(update={"sticky_actions": 0.9})
    with pytest.raises(ReplayError, match=r"to repeat itself, got another frame at its step"):
        games_at(sticky, store, frames, starts, 4)


# Trials


def test_arms_differ_in_layout_and_prior_and_a_run_has_96_rows_for_each_step(
    tmp_path: Path,
) -> None:
    trial = make_trial(tmp_path, steps=4096, updates=None, overrides=())
    assert trial.ends_after == 4096 * 96 / (32 * 32) == trial.settings()["updates"]
    assert trial.new_steps == 4 * 4096
    models = {arm: make_trial(tmp_path, arm=arm, overrides=()).config().world_model for arm in ARMS}
    layouts = {arm: (m.layout, m.grid.prior) for arm, m in models.items()}
    assert layouts["grid"] == ("grid", "joint") and layouts["flat"][0] == "flat"
    assert layouts["grid_independent"] == ("grid", "independent")


def test_the_command_of_a_trial_makes_it_again(tmp_path: Path) -> None:
    folders = {"out": tmp_path, "results": tmp_path}
    trial = make_trial(tmp_path, seed=1, policy=Path("some_run"), ratio=7.0, results=tmp_path)
    given = vars(_parser().parse_args(trial.command()[1:])) | folders
    study = study_of("fidelity", given["words"])
    planned = study.plan(given, read_options(study.options, given), Console(quiet=True))
    assert planned[1] == trial
    beside = make_trial(tmp_path, results=Path("anywhere/model_own")).command()[-4:]
    folder = "minatar/model_own"
    assert beside == ["--results", f"results/{folder}", "--out", f"runs/{folder}/asterix"]


def test_other_settings_and_unknown_games_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="expected overrides of world_model"):
        make_trial(tmp_path, overrides=("env.id=x",)).config()
    assert main(["bench", "fidelity", "asterix"]) == 2
    assert "did you mean minatar_asterix?" in capsys.readouterr().err


def write_run(folder: Path, env_id: str) -> Path:
    """The folder of a run whose policy acts at random."""
    folder.mkdir()
    (folder / "config.yaml").write_text(f"name: r\nagent: random\nenv: {{id: {env_id}}}\n")
    return folder


def test_the_policy_of_a_run_plays_its_own_game_and_no_other(tmp_path: Path) -> None:
    run = write_run(tmp_path / "its_run", "MinAtar/Asterix-v1")
    trial = make_trial(tmp_path / "out", policy=run)
    train, new = episodes_of(trial)
    assert sum(info.steps for info in train.segments()) == 400
    assert sum(info.steps for info in new.segments()) == 1600
    record = json.loads((trial.episodes_dir / "frames.json").read_text())
    assert record["player"] == "its_run after 0 steps"
    with pytest.raises(ReplayError, match="expected frames with player=None, got player=its_run"):
        episodes_of(make_trial(tmp_path / "out"))
    other = write_run(tmp_path / "other", "MinAtar/Breakout-v1")
    with pytest.raises(ConfigError, match=r"expected a run on MinAtar/Asterix-v1 .*Breakout-v1"):
        player_of(other, trial.config().env)
    with pytest.raises(MbrlError, match="expected a run folder"):
        player_of(tmp_path, trial.config().env)


@pytest.mark.timeout(300)
def test_the_command_judges_a_model_and_gathers_the_games(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = make_trial(tmp_path / "out", results=tmp_path / "model")
    words = [*trial.words()[1:], "--arms", "flat", "--seeds", "1", "--updates", "4"]
    words += ["--steps", "400", "--quick", "--minutes", "1"]
    words += ["--out", str(trial.out), "--results", str(trial.results)]
    assert bench.main([str(trial.write())]) == 0, capsys.readouterr().err

    def nothing(*_: object, **__: object) -> None:
        raise RuntimeError("there is nothing left to do")

    monkeypatch.setattr("subprocess.Popen", nothing)
    assert main(words) == 0
    result = read_result(trial.result_path)
    assert result is not None and (result["updates"], result["game"]) == (4, "asterix")
    measures = result["measures"]
    for part in ("held_out", "train", "copy_last", "best_possible"):
        assert list(measures[part]) == ["0", "1", "5", "10"]
        assert list(measures[part]["10"]) == ["player", "enemy", "trail", "gold"]
    assert measures["copy_last"]["0"]["player"] == measures["best_possible"]["0"]["player"] == 1
    assert measures["copy_last"]["10"]["enemy"] < measures["best_possible"]["10"]["enemy"] < 1
    assert measures["windows"] == {"train": 16, "held_out": 16}
    gathered = json.loads((tmp_path / "model.json").read_text())
    assert {"command", "commit", "machine", "seeds"} <= gathered.keys()
    game = gathered["games"]["asterix"]
    assert game["layouts"]["flat"]["5"]["gold"].keys() == {"mean", "ci95", "per_seed"}
    assert game["best_possible"]["1"]["trail"]["per_seed"] == [
        measures["best_possible"]["1"]["trail"]
    ]
    page = (trial.out / "report.html").read_text()
    assert page.count("<svg") == 1 and page.count("data:image/png") == 1
    assert {path.name for path in (trial.out / "figures").iterdir()} == {"f1.png", "dreams.png"}

    documented(tmp_path / "model.json", monkeypatch)


def documented(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page shows the numbers, and says so while there are none."""
    import generalisation_page

    monkeypatch.setattr(generalisation_page, "RESULTS", results)
    text = generalisation_page.numbers(lambda *_: "From somewhere.")
    assert "| asterix | flat, 1 seeds |" in text and "| enemy |" in text
    assert max(line.count(" | ") + 1 for line in text.splitlines() if line[:1] == "|") <= 8
    monkeypatch.setattr(generalisation_page, "RESULTS", results.with_name("none.json"))
    assert generalisation_page.numbers(lambda *_: "") == generalisation_page.NOTHING


def test_results_of_the_repository_still_have_the_settings_of_their_arms() -> None:
    for path in sorted((ROOT / "results" / "minatar" / "model").glob("*/*-[0-9].json")):
        made = SimpleNamespace(**json.loads(path.read_text(encoding="utf-8")))
        settings = made.settings
        trial = Trial(
            game=f"minatar_{made.game}",
            arm=made.arm,
            seed=made.seed,
            minutes=made.cpu_minutes,
            steps=settings["steps"],
            updates=settings["updates"],
            quick=settings["quick"],
            overrides=tuple(made.overrides),
            policy=None if settings["policy"] == "random" else Path(settings["policy"]),
            device=settings.get("device", "cpu"),
            out=Path("out"),
            results=Path("results"),
        )
        assert trial.changes(settings) == [], path
