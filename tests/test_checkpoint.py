import json
import math
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mbrl.errors import CheckpointError
from mbrl.run import checkpoint


def round_trip(tmp_path: Path, state: dict[str, Any]) -> dict[str, Any]:
    checkpoint.save(tmp_path, 7, state)
    step, loaded = checkpoint.load(tmp_path)
    assert step == 7
    return loaded


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


TENSOR_DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint64, torch.uint32, torch.uint16, torch.uint8, torch.float8_e4m3fn),
]


@pytest.mark.parametrize("dtype", TENSOR_DTYPES, ids=str)
def test_every_tensor_dtype_comes_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    size = torch.empty(0, dtype=dtype).element_size()
    raw = torch.arange(6 * size, dtype=torch.uint8)
    tensor = (raw % 2).bool() if dtype is torch.bool else raw.view(dtype)
    tensor = tensor.reshape(2, 3)
    loaded = round_trip(tmp_path, {"x": tensor})["x"]
    assert loaded.dtype == dtype
    assert loaded.shape == (2, 3)
    assert bits(loaded) == bits(tensor)


@pytest.mark.parametrize("dtype", ["?", "u1", "i2", "u4", "i8", "u8", "f2", "f4", "f8", "c8"])
def test_every_array_dtype_comes_back_as_an_array(tmp_path: Path, dtype: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    loaded = round_trip(tmp_path, {"x": array, "one": array[1, 2]})
    assert type(loaded["x"]) is np.ndarray
    assert loaded["x"].dtype == array.dtype
    np.testing.assert_array_equal(loaded["x"], array)
    assert type(loaded["one"]) is type(array[1, 2])
    assert loaded["one"] == array[1, 2]


@pytest.mark.parametrize(
    "state",
    [
        {"int": 2**200, "negative zero": -0.0, "third": 1 / 3, "text": "λ \x00 é"},
        {"infinities": [math.inf, -math.inf], "nan": math.nan, "none": None, "bytes": b"\x00\xff"},
        {"bools": (True, False), "nested": {"a": [{"b": ((1,), [])}], "empty": {}}},
        {"$dollar": {"$tensor": "not a tensor"}},
        {"adam": {0: "int", "0": "string", None: "none", True: "bool"}, "order": {"b": 1, "a": 2}},
    ],
)
def test_numbers_strings_and_containers_keep_value_and_type(
    tmp_path: Path, state: dict[str, Any]
) -> None:
    # the text tells 1 from True, 1 from "1", -0.0 from 0.0 and tuples from lists
    assert repr(round_trip(tmp_path, state)) == repr(state)


def test_empty_scalar_reversed_and_read_only_arrays_are_stored_as_they_are(tmp_path: Path) -> None:
    frozen = np.arange(3)
    frozen.flags.writeable = False
    tensors = {"empty": torch.empty(0, 3), "scalar": torch.tensor(2.5), "zero_d": np.array(4)}
    arrays = {"reversed": np.arange(3)[::-1], "frozen": frozen}
    loaded = round_trip(tmp_path, {**tensors, **arrays})
    assert [tuple(loaded[name].shape) for name in tensors] == [(0, 3), (), ()]
    assert [loaded[name].tolist() for name in arrays] == [[2, 1, 0], [0, 1, 2]]


def test_views_and_shared_tensors_come_back_equal_and_apart(tmp_path: Path) -> None:
    base = torch.arange(6.0)
    state = {"base": base, "again": base, "tail": base[3:], "t": base.view(2, 3).T, "flip": base}
    loaded = round_trip(tmp_path, state)
    torch.testing.assert_close(loaded["tail"], torch.tensor([3.0, 4.0, 5.0]), rtol=0, atol=0)
    assert loaded["t"].tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    loaded["base"].zero_()
    assert loaded["again"].tolist() == base.tolist()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({1, 2}, r"state\['a'\]\[0\] of <class 'set'>"),
        (np.array(["x"]), r"dtype <U1"),
        (np.zeros(2, dtype=complex), r"complex128"),
        (torch.zeros(2, 2).to_sparse(), r"sparse"),
        ({1.5: 0}, r"got 1.5 of <class 'float'>"),
        (Path("x"), r"PosixPath"),
    ],
    ids=["set", "text array", "complex128", "sparse", "float key", "path"],
)
def test_what_cannot_be_stored_is_refused_by_place_and_type(
    tmp_path: Path, value: Any, said: str
) -> None:
    with pytest.raises(CheckpointError, match=said):
        checkpoint.save(tmp_path, 1, {"a": [value]})
    assert checkpoint.steps(tmp_path) == []


def test_load_takes_what_latest_names_or_else_the_newest(tmp_path: Path) -> None:
    for step in (900_000_000, 10_000_000_000, 5):
        checkpoint.save(tmp_path, step, {"step": step})
    assert checkpoint.steps(tmp_path) == [5, 900_000_000, 10_000_000_000]
    assert checkpoint.load(tmp_path) == (5, {"step": 5})
    (tmp_path / "latest").write_text("900000000\n")  # by hand
    assert checkpoint.load(tmp_path)[0] == 900_000_000
    (tmp_path / "latest").unlink()
    assert checkpoint.load(tmp_path)[0] == 10_000_000_000


def test_saving_a_step_twice_keeps_the_first_and_loads_the_second(tmp_path: Path) -> None:
    first = checkpoint.save(tmp_path, 4, {"x": 1})
    second = checkpoint.save(tmp_path, 4, {"x": 2})
    assert first != second
    assert first.is_dir()
    assert checkpoint.load(tmp_path) == (4, {"x": 2})
    checkpoint.prune(tmp_path, 1)
    assert not first.exists()
    assert checkpoint.load(tmp_path) == (4, {"x": 2})


def test_missing_checkpoint_is_an_error_with_the_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"found none; train first, or check run\.dir"):
        checkpoint.load(tmp_path / "nowhere")


def test_folder_without_done_does_not_count_and_leftovers_of_a_killed_writer_are_swept(
    tmp_path: Path,
) -> None:
    leftover = tmp_path / ".tmp-dead"
    leftover.mkdir()
    (leftover / "state.json").write_text("{")
    checkpoint.save(tmp_path, 1, {"x": 1})
    assert not leftover.exists()
    unfinished = checkpoint.save(tmp_path, 2, {"x": 2})
    (unfinished / "done").unlink()
    assert checkpoint.steps(tmp_path) == [1]
    assert checkpoint.load(tmp_path) == (1, {"x": 1})


def test_prune_keeps_the_newest_and_the_one_that_latest_names(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        checkpoint.save(tmp_path, step, {})
    (tmp_path / "latest").write_text("000000001\n")
    checkpoint.prune(tmp_path, 2)
    assert checkpoint.steps(tmp_path) == [1, 3, 4]


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "done"])
@pytest.mark.parametrize("how", ["flip", "cut"])
def test_damage_to_any_file_is_found_and_the_way_back_is_told(
    tmp_path: Path, name: str, how: str
) -> None:
    checkpoint.save(tmp_path, 1, {"x": torch.ones(3)})
    path = checkpoint.save(tmp_path, 2, {"x": torch.ones(3)}) / name
    data = bytearray(path.read_bytes())
    if how == "flip":
        data[len(data) // 2] ^= 0xFF
    path.write_bytes(data if how == "flip" else data[:-2])
    with pytest.raises(CheckpointError, match=r"Remove that folder, .* resumes from step 1"):
        checkpoint.load(tmp_path)
    shutil.rmtree(path.parent)
    assert checkpoint.load(tmp_path)[0] == 1


def test_missing_tensor_file_is_found(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 1, {"x": torch.ones(3)})
    (path / "tensors.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"No such file.*tensors.safetensors.* the beginning"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize(
    "done", [{"format": "reverie-checkpoint/9"}, {"step": 2}, {"files": {}}, {"files": None}]
)
def test_a_seal_of_another_checkpoint_is_refused(tmp_path: Path, done: dict[str, Any]) -> None:
    path = checkpoint.save(tmp_path, 1, {}) / "done"
    path.write_text(json.dumps({**json.loads(path.read_text()), **done}))
    with pytest.raises(CheckpointError, match="is damaged: expected what done says"):
        checkpoint.load(tmp_path)


def test_full_disk_is_told_and_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, {"x": 1})
    # A process that may write at most 64 KiB to one file meets the error a full disk gives.
    script = """
        import pathlib, resource, sys, torch
        from mbrl.run import checkpoint
        from mbrl.errors import CheckpointError
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
        try:
            checkpoint.save(pathlib.Path(sys.argv[1]), 2, {"x": eval(sys.argv[2])})
        except CheckpointError as error:
            print(error)
    """
    for value in ("torch.zeros(100_000)", "'x' * 100_000"):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script), str(tmp_path), value],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": os.getcwd()},
            check=True,
        )
        assert "The checkpoint of step 1 is intact. Make room" in done.stdout
        assert checkpoint.load(tmp_path) == (1, {"x": 1})
        assert sorted(p.name for p in tmp_path.iterdir()) == ["000000001", "latest"]


def test_crash_before_latest_moved_resumes_from_what_latest_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, 1, {"x": 1})
    replace = os.replace

    def full_at_the_end(source: Path, target: Path) -> None:
        if target.name == "latest":
            raise OSError(28, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(CheckpointError, match="No space left"):
        patch.setattr(os, "replace", full_at_the_end)
        checkpoint.save(tmp_path, 2, {"x": 2})
    assert checkpoint.load(tmp_path) == (1, {"x": 1})
    checkpoint.save(tmp_path, 2, {"x": 3})
    assert checkpoint.load(tmp_path) == (2, {"x": 3})
