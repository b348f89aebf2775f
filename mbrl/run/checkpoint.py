"""Checkpoints: a nested state goes in, one folder that is either whole or invisible comes out.

    checkpoints/
      latest                 name of the folder to resume from, replaced atomically
      000004000/             env steps; `000004000-2` if the same step is saved once more
        tensors.safetensors  every tensor and array
        state.json           everything else, and where each tensor belongs
        done                 sizes and SHA-256 of both files; without it the folder does not count

A state is made of dicts, lists, tuples, tensors, numpy arrays and scalars, numbers, strings,
bytes, bools and None. It comes back with the same types and, bit for bit, the same values, with
these exceptions: tensors come back on the CPU without gradients (a `Parameter` as a plain tensor),
tensors that shared memory come back apart, and mappings of any kind come back as `dict`. Anything
else is refused: nothing is pickled, so a checkpoint from a stranger can be opened.

One process writes; any number may read. This module knows nothing of what the state means.
"""

import base64
import hashlib
import json
import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mbrl.errors import CheckpointError, DiskError
from mbrl.run import durable

_FORMAT = "reverie-checkpoint/1"
_NAME = re.compile(r"(\d{9,})(?:-(\d+))?")
_TENSORS, _STATE, _DONE, _LATEST = "tensors.safetensors", "state.json", "done", "latest"
_DTYPES = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.bool),
    *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz),
    *(torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint64, torch.uint32, torch.uint16, torch.uint8),
}


def save(folder: Path | str, step: int, state: Mapping[str, Any]) -> Path:
    """Write a checkpoint and make it the latest.

    The folder is complete and on disk before it gets its name, so a crash or a full disk at any
    moment leaves all earlier checkpoints as they were.

    Args:
        folder: holds all checkpoints of a run; made if missing.
        step: environment steps so far, >= 0.
        state: see the module's description.

    Returns:
        The checkpoint's own folder.

    Raises:
        CheckpointError: the state holds something that cannot be stored, or the disk refused.
    """
    if step < 0:
        raise CheckpointError(f"checkpoint: expected a step >= 0, got {step}")
    folder = Path(folder)
    tensors: dict[str, torch.Tensor] = {}
    tree = _encode(state, "state", tensors, set())
    temporary = folder / f".tmp-{uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob(".tmp-*"):  # a writer that died
            shutil.rmtree(stale)
        temporary.mkdir()
        save_file(tensors, temporary / _TENSORS)
        durable.sync(temporary / _TENSORS)
        durable.write_synced(temporary / _STATE, json.dumps(tree, allow_nan=False).encode())
        files = {name: _digest(temporary / name) for name in (_TENSORS, _STATE)}
        done = {"format": _FORMAT, "step": step, "files": files}
        durable.write_synced(temporary / _DONE, json.dumps(done, indent=1).encode())
        durable.sync(temporary)
        target = folder / _free_name(folder, step)
        durable.rename(temporary, target)
        durable.write_atomically(folder / _LATEST, f"{target.name}\n")
    except (OSError, SafetensorError, DiskError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"cannot write the checkpoint of step {step} in {folder}: {error}. "
            f"{_what_is_left(folder)} Make room or choose another run.dir, then run the same "
            "command again"
        ) from error
    return target


def load(folder: Path | str, step: int | None = None) -> tuple[int, dict[str, Any]]:
    """Read a checkpoint back, after checking every byte of it.

    Args:
        folder: as given to `save`.
        step: which one; None for the one that `latest` names, or the newest complete one if there
            is no such file.

    Returns:
        The step and the state, all tensors on the CPU.

    Raises:
        CheckpointError: there is none, or it is damaged. A damaged checkpoint is never skipped
            silently; the message says what to remove in order to go back to the one before.
    """
    folder = Path(folder)
    path = _choose(folder, step)
    _verify(path)
    tree = _read_json(path / _STATE, path)
    try:
        # The file is mapped into memory; the clone makes the state independent of it.
        tensors = {key: value.clone() for key, value in load_file(path / _TENSORS).items()}
    except (OSError, SafetensorError) as error:
        raise _damaged(path, str(error)) from error
    return _order(path)[0], _decode(tree, tensors)


def steps(folder: Path | str) -> list[int]:
    """Steps of all complete checkpoints, ascending."""
    return sorted({_order(path)[0] for path in _complete(Path(folder))})


def prune(folder: Path | str, keep: int) -> list[int]:
    """Remove the oldest checkpoints, never the one that `latest` names.

    Args:
        folder: as given to `save`.
        keep: how many complete checkpoints stay, >= 1.

    Returns:
        Steps of the checkpoints that were removed, ascending.

    Raises:
        CheckpointError: `keep` is less than 1.
    """
    if keep < 1:
        raise CheckpointError(f"checkpoint: expected keep >= 1, got {keep}; one has to remain")
    folder = Path(folder)
    latest = _latest_name(folder)
    removed = []
    for path in _complete(folder)[:-keep]:
        if path.name == latest:
            continue
        # Without `done` it no longer counts, whatever happens during the removal.
        (path / _DONE).unlink()
        shutil.rmtree(path)
        removed.append(_order(path)[0])
    return removed


# Names and folders


def _order(path: Path) -> tuple[int, int]:
    """(step, how often that step was saved before), the order of checkpoints in time."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(f"not a checkpoint's name: {path.name}")
    return int(match[1]), int(match[2] or 1)


def _named(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if _NAME.fullmatch(p.name)), key=_order)


def _complete(folder: Path) -> list[Path]:
    return [path for path in _named(folder) if (path / _DONE).is_file()]


def _free_name(folder: Path, step: int) -> str:
    """A name for this step that sorts after every folder that has it already."""
    taken = [_order(path)[1] for path in _named(folder) if _order(path)[0] == step]
    return f"{step:09d}-{max(taken) + 1}" if taken else f"{step:09d}"


def _latest_name(folder: Path) -> str | None:
    try:
        return (folder / _LATEST).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None


def _choose(folder: Path, step: int | None) -> Path:
    complete = _complete(folder)
    if not complete:
        raise CheckpointError(
            f"expected a complete checkpoint in {folder}, found none; train first, or check run.dir"
        )
    if step is None:
        name = _latest_name(folder)
        return next((path for path in complete if path.name == name), complete[-1])
    of_step = [path for path in complete if _order(path)[0] == step]
    if not of_step:
        raise CheckpointError(
            f"expected a checkpoint of step {step} in {folder}, found steps {steps(folder)}"
        )
    return of_step[-1]


def _what_is_left(folder: Path) -> str:
    left = steps(folder)
    return f"The checkpoint of step {left[-1]} is intact." if left else "There is no earlier one."


def _verify(path: Path) -> None:
    """Compare every byte of a checkpoint with what `done` says of it."""
    done = _read_json(path / _DONE, path)
    if not isinstance(done, dict) or done.get("format") != _FORMAT:
        found = done.get("format") if isinstance(done, dict) else done
        raise _damaged(path, f"expected format {_FORMAT}, found {found}")
    if done.get("step") != _order(path)[0]:
        raise _damaged(path, f"it was written as step {done.get('step')}")
    seals = done.get("files")
    for name in (_TENSORS, _STATE):
        if not (path / name).is_file():
            raise _damaged(path, f"{name} is missing")
        if not isinstance(seals, dict) or seals.get(name) != _digest(path / name):
            raise _damaged(path, f"{name} is not what was written (size or checksum differs)")


def _damaged(path: Path, why: str) -> CheckpointError:
    earlier = [p for p in _complete(path.parent) if _order(p) < _order(path)]
    then = f"resumes from step {_order(earlier[-1])[0]}" if earlier else "starts from the beginning"
    return CheckpointError(
        f"the checkpoint {path} is damaged: {why}. Remove that folder, and the same command {then}"
    )


# Bytes


def _digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _read_json(path: Path, checkpoint: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(checkpoint, f"{path.name} cannot be read ({error})") from error


# The tree. A JSON object whose only key starts with "$" stands for what JSON does not have.


def _encode(value: Any, at: str, tensors: dict[str, torch.Tensor], storages: set[int]) -> Any:
    """The JSON form of `value`; tensors move to `tensors`. `at` names the place in messages."""
    if isinstance(value, torch.Tensor):
        return {"$tensor": _keep(value.detach(), at, tensors, storages)}
    if isinstance(value, np.ndarray | np.generic):  # before float: np.float64 is a float as well
        tag = "$array" if isinstance(value, np.ndarray) else "$scalar"
        return {tag: _keep(_from_numpy(value, at), at, tensors, storages)}
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Mapping):
        items = [(_encode_key(key, at), key, item) for key, item in value.items()]
        encoded = [
            [k, _encode(item, f"{at}[{key!r}]", tensors, storages)] for k, key, item in items
        ]
        plain = all(isinstance(key, str) and not key.startswith("$") for key in value)
        return dict(encoded) if plain else {"$dict": encoded}
    if type(value) in (list, tuple):
        members = [_encode(v, f"{at}[{i}]", tensors, storages) for i, v in enumerate(value)]
        return members if isinstance(value, list) else {"$tuple": members}
    if type(value) is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if type(value) in (int, str):
        return value
    if type(value) is bytes:
        return {"$bytes": base64.b64encode(value).decode("ascii")}
    raise CheckpointError(
        f"checkpoint: cannot store {at} of type {type(value).__module__}."
        f"{type(value).__qualname__}; expected dicts, lists, tuples, tensors, numpy arrays, "
        "numbers, strings, bytes, bools or None"
    )


def _encode_key(key: Any, at: str) -> Any:
    if key is None or type(key) in (str, int, bool):
        return key
    raise CheckpointError(
        f"checkpoint: cannot store {at}: expected keys that are strings, integers, bools or None, "
        f"got {key!r} of type {type(key).__qualname__}"
    )


def _from_numpy(value: Any, at: str) -> torch.Tensor:
    try:
        return torch.from_numpy(np.array(value, order="C"))
    except TypeError as error:
        raise CheckpointError(
            f"checkpoint: cannot store {at}, an array of dtype {value.dtype}; expected bool, "
            "integers, floats up to 64 bits or complex64"
        ) from error


def _keep(
    tensor: torch.Tensor, at: str, tensors: dict[str, torch.Tensor], storages: set[int]
) -> str:
    """Add the tensor under a new key, in the form that safetensors accepts."""
    if tensor.layout is not torch.strided or tensor.dtype not in _DTYPES:
        raise CheckpointError(
            f"checkpoint: cannot store {at}, a {tensor.layout} tensor of {tensor.dtype}; expected "
            "a dense tensor of bool, integers, floats up to 64 bits or complex64"
        )
    tensor = tensor.resolve_conj().resolve_neg().cpu().contiguous()
    storage = tensor.untyped_storage().data_ptr()
    if storage in storages:  # safetensors refuses tensors that share memory
        tensor = tensor.clone()
    storages.add(tensor.untyped_storage().data_ptr())
    key = str(len(tensors))
    tensors[key] = tensor
    return key


def _decode(node: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(node, list):
        return [_decode(item, tensors) for item in node]
    if not isinstance(node, dict):
        return node
    tag: str = next(iter(node), "")
    content: Any = node.get(tag)
    match tag:
        case "$tensor":
            return tensors[content]
        case "$array":
            return tensors[content].numpy()
        case "$scalar":
            return tensors[content].numpy()[()]
        case "$dict":
            return {key: _decode(item, tensors) for key, item in content}
        case "$tuple":
            return tuple(_decode(item, tensors) for item in content)
        case "$float":
            return float(content)
        case "$bytes":
            return base64.b64decode(content)
    return {key: _decode(item, tensors) for key, item in node.items()}
