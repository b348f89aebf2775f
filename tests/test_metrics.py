import json
import logging
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from mbrl.errors import ConfigError
from mbrl.run.metrics import MetricsLog, read_metrics
from mbrl.run.mirrors import opener


class Recorder:
    def __init__(self, fails: bool = False) -> None:
        self.fails, self.closed = fails, False
        self.seen: list[tuple[int, dict[str, float]]] = []

    def write(self, env_steps: int, scalars: Mapping[str, float]) -> None:
        if self.fails:
            raise ConnectionError("tracker is down")
        self.seen.append((env_steps, dict(scalars)))

    def close(self) -> None:
        self.closed = True


def raw_lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_line_has_steps_time_kind_and_plain_metrics(tmp_path: Path) -> None:
    time = SimpleNamespace(now=100.0)
    metrics = {
        "a/f32": np.float32(0.5),
        "a/i64": np.int64(3),
        "a/bool": np.bool_(True),
        "a/tensor": torch.tensor(0.25),
        "a/array": np.array([1.0, 2.0]),
        "a/list": [1, 2.0],
    }
    with MetricsLog(tmp_path, clock=lambda: time.now) as log:
        time.now += 2.5
        log.write("eval", 64, metrics)
        # on disk at once, before the file is closed
        (line,) = raw_lines(tmp_path)
    assert list(line.items())[:3] == [("env_steps", 64), ("wall_time_s", 2.5), ("kind", "eval")]
    assert [line[name] for name in metrics] == [0.5, 3, True, 0.25, [1.0, 2.0], [1, 2.0]]


def test_values_that_are_not_finite_are_null_on_disk_and_nan_when_read(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []
    with MetricsLog(tmp_path) as log:
        log.write("eval", 1, {})
        log.write("train", 1, {"a/nan": math.nan, "a/inf": np.float32(math.inf), "a/ok": 1})
    assert [raw_lines(tmp_path)[1][name] for name in ("a/nan", "a/inf")] == [None, None]
    (line,) = read_metrics(tmp_path, "train")
    assert math.isnan(line["a/nan"]) and math.isnan(line["a/inf"]) and line["a/ok"] == 1


def test_metric_that_cannot_be_stored_is_refused_by_name(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        with pytest.raises(ValueError, match="'env_steps': this name is reserved"):
            log.write("train", 1, {"env_steps": 3})
        with pytest.raises(TypeError, match=r"'a/b\[1\]'.* got NoneType"):
            log.write("train", 1, {"a/b": [1, None]})
    assert raw_lines(tmp_path) == []


def test_a_resumed_log_goes_on_from_the_time_of_the_last_line_that_remains(tmp_path: Path) -> None:
    time = SimpleNamespace(now=100.0)

    def write(steps: list[int], truncate: bool) -> list[tuple[int, float]]:
        with MetricsLog(tmp_path, clock=lambda: time.now) as log:
            if truncate:
                log.truncate_after(200)
            for step in steps:
                time.now += 10
                log.write("train", step, {"a/b": step})
        time.now += 1000  # the pause between two processes
        return [(line["env_steps"], line["wall_time_s"]) for line in raw_lines(tmp_path)]

    assert write([100], truncate=False) == [(100, 10)]
    lines = [(100, 10), (200, 20), (200, 30), (300, 40)]
    assert write([200, 200, 300], truncate=False) == lines
    assert write([250], truncate=True) == [*lines[:3], (250, 40)]


def test_half_written_last_line_is_removed_and_any_other_is_an_error(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        log.write("train", 1, {"a/b": 1})
    path = tmp_path / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"env_steps": 2, "wall_ti')
    assert [line["env_steps"] for line in read_metrics(tmp_path)] == [1]
    with MetricsLog(tmp_path) as log:
        log.write("train", 3, {})
    assert [line["env_steps"] for line in read_metrics(tmp_path)] == [1, 3]
    path.write_text(path.read_text().replace("\n", "\nrubbish\n", 1))
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2: expected one JSON object per line"):
        read_metrics(tmp_path)


def test_mirror_that_fails_is_dropped_with_a_warning_and_the_rest_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = Recorder(), Recorder(fails=True)
    others = {"a/nan": math.nan, "a/list": [1], "a/text": "t"}  # a tracker gets finite numbers only
    with (
        caplog.at_level(logging.WARNING),
        MetricsLog(tmp_path, mirrors=[lambda _: bad, lambda _: good]) as log,
    ):
        log.write("train", 1, {"a/x": 1, **others})
        log.write("train", 2, {"a/x": 2})
    assert good.seen == [(1, {"a/x": 1.0}), (2, {"a/x": 2.0})] and good.closed
    assert len(raw_lines(tmp_path)) == 2
    assert caplog.text.count("Recorder failed and is off") == 1
    assert "tracker is down" in caplog.text


def test_mirror_that_does_not_open_stops_the_run_with_the_way_out(tmp_path: Path) -> None:
    def unreachable(first_step: int | None) -> Recorder:
        raise ConnectionError("no such server")

    with (
        MetricsLog(tmp_path, mirrors=[unreachable]) as log,
        pytest.raises(ConfigError, match=r"does not \(no such server\); repair it, or turn it off"),
    ):
        log.write("train", 1, {})


@pytest.mark.parametrize(
    ("checkpoint", "shown"),
    [
        (20, [(10, 1.0), (20, 2.0), (30, 7.0)]),
        (-1, [(30, 7.0)]),  # it died before its first checkpoint
    ],
)
def test_tensorboard_shows_each_step_once_after_a_resume(
    tmp_path: Path, checkpoint: int, shown: list[tuple[int, float]]
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    before, after = [(10, 1.0), (20, 2.0), (30, 3.0)], [(30, 7.0)]
    for lines in (before, after):
        with MetricsLog(tmp_path, mirrors=[opener("tensorboard", tmp_path)]) as log:
            if lines is after:
                log.truncate_after(checkpoint)
            for step, value in lines:
                log.write("train", step, {"loss/total": value})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss/total")] == shown


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_tracker_without_its_extra_is_refused_before_the_run_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"pip install 'reverie-rl\[{name}\]'"):
        opener(name, tmp_path)


def test_wandb_keeps_its_identity_over_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = MagicMock()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for step in (1, 2):
        with MetricsLog(tmp_path, mirrors=[opener("wandb", tmp_path)]) as log:
            log.write("train", step, {"a/x": 3})
    first, second = wandb.init.call_args_list
    assert first.kwargs["id"] == second.kwargs["id"]
    logged = [call.args for call in wandb.init.return_value.log.call_args_list]
    assert logged == [({"a/x": 3.0, "env_steps": 1},), ({"a/x": 3.0, "env_steps": 2},)]
