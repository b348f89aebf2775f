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

One process writes; any number may read.
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
_NAME = re.compile(r"\d{9,}(-\d+)?")
_TENSORS, _STATE, _DONE, _LATEST = "tensors.safetensors", "state.json", "done", "latest"
_DTYPES = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.bool),
    *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz),
    *(torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint64, torch.uint32, torch.uint16, torch.uint8),
}


def save(folder: Path, step: int, state: Mapping[str, Any]) -> Path:
    """Write the checkpoint of a step, make it the latest, and return its own folder.

    It is complete and on disk before it gets its name, so a crash or a full disk at any moment
    leaves all earlier checkpoints as they were.

    Raises:
        CheckpointError: the state holds something that cannot be stored, or the disk refused.
    """
    tensors: dict[str, torch.Tensor] = {}
    tree = _encode(state, "state", tensors)
    temporary = folder / f".tmp-{uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob(".tmp-*"):  # a writer that died
            shutil.rmtree(stale)
        temporary.mkdir()
        save_file(tensors, temporary / _TENSORS)
        durable.sync(temporary / _TENSORS)
        durable.write_synced(temporary / _STATE, json.dumps(tree, allow_nan=False).encode())
        seal = json.dumps(_seal(temporary, step), indent=1)
        durable.write_synced(temporary / _DONE, seal.encode())
        durable.sync(temporary)
        target = folder / _free_name(folder, step)
        durable.rename(temporary, target)
        durable.write_atomically(folder / _LATEST, f"{target.name}\n")
    except (OSError, SafetensorError, DiskError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        left = steps(folder)
        raise CheckpointError(
            f"cannot write the checkpoint of step {step} in {folder}: {error}. "
            + (f"The checkpoint of step {left[-1]} is intact. " if left else "There is no other. ")
            + "Make room or choose another run.dir, then run the same command again"
        ) from error
    return target


def load(folder: Path) -> tuple[int, dict[str, Any]]:
    """Step and state of the checkpoint that `latest` names, or else of the newest complete one.

    Every byte is checked; tensors are on the CPU.

    Raises:
        CheckpointError: there is none, or it is damaged. A damaged checkpoint is never skipped
            silently; the message says what to remove in order to go back to the one before.
    """
    complete = _complete(folder)
    if not complete:
        raise CheckpointError(
            f"expected a complete checkpoint in {folder}, found none; train first, or check run.dir"
        )
    latest = _latest_name(folder)
    path = next((path for path in complete if path.name == latest), complete[-1])
    _verify(path)
    tree = _read_json(path / _STATE, path)
    try:
        # the file is mapped into memory; the clone makes the state independent of it
        tensors = {key: value.clone() for key, value in load_file(path / _TENSORS).items()}
    except (OSError, SafetensorError) as error:
        raise _damaged(path, str(error)) from error
    return _order(path)[0], _decode(tree, tensors)


def steps(folder: Path) -> list[int]:
    """Steps of all complete checkpoints, ascending."""
    return sorted({_order(path)[0] for path in _complete(folder)})


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` >= 1 checkpoints, never the one that `latest` names."""
    latest = _latest_name(folder)
    for path in _complete(folder)[:-keep]:
        if path.name != latest:
            # Without `done` it no longer counts, whatever happens during the removal.
            (path / _DONE).unlink()
            shutil.rmtree(path)


# Names and folders


def _order(path: Path) -> tuple[int, int]:
    """(step, how often that step was saved before), the order of checkpoints in time."""
    step, _, again = path.name.partition("-")
    return int(step), int(again or 1)


def _named(folder: Path) -> list[Path]:
    return sorted((p for p in folder.glob("*") if _NAME.fullmatch(p.name)), key=_order)


def _complete(folder: Path) -> list[Path]:
    return [path for path in _named(folder) if (path / _DONE).is_file()]


def _free_name(folder: Path, step: int) -> str:
    """A name for this step that sorts after every folder that has it already."""
    taken = [_order(path)[1] for path in _named(folder) if _order(path)[0] == step]
    return f"{step:09d}-{max(taken) + 1}" if taken else f"{step:09d}"


def _latest_name(folder: Path) -> str | None:
    path = folder / _LATEST
    return path.read_text(encoding="utf-8").strip() if path.exists() else None


def _verify(path: Path) -> None:
    """Compare every byte of a checkpoint with what `done` says of it."""
    said = _read_json(path / _DONE, path)
    try:
        found = _seal(path, _order(path)[0])
    except OSError as error:
        raise _damaged(path, str(error)) from error
    if said != found:
        raise _damaged(path, f"expected what {_DONE} says, {said}, found {found}")


def _damaged(path: Path, why: str) -> CheckpointError:
    earlier = [p for p in _complete(path.parent) if _order(p) < _order(path)]
    then = f"resumes from step {_order(earlier[-1])[0]}" if earlier else "starts from the beginning"
    return CheckpointError(
        f"the checkpoint {path} is damaged: {why}. Remove that folder, and the same command {then}"
    )


# Bytes


def _seal(path: Path, step: int) -> dict[str, Any]:
    """What `done` says of the files in a folder."""
    files = {}
    for name in (_TENSORS, _STATE):
        with (path / name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        files[name] = {"bytes": (path / name).stat().st_size, "sha256": digest}
    return {"format": _FORMAT, "step": step, "files": files}


def _read_json(path: Path, checkpoint: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(checkpoint, f"{path.name} cannot be read ({error})") from error


# The tree. A JSON object whose only key starts with "$" stands for what JSON does not have.


def _encode(value: Any, at: str, tensors: dict[str, torch.Tensor]) -> Any:
    """The JSON form of `value`; tensors move to `tensors`. `at` names the place in messages."""
    if isinstance(value, torch.Tensor):
        return {"$tensor": _keep(value.detach(), at, tensors)}
    if isinstance(value, np.ndarray | np.generic):  # before float: np.float64 is a float as well
        tag = "$array" if isinstance(value, np.ndarray) else "$scalar"
        return {tag: _keep(_from_numpy(value, at), at, tensors)}
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Mapping):
        encoded = [
            [_checked_key(key, at), _encode(item, f"{at}[{key!r}]", tensors)]
            for key, item in value.items()
        ]
        plain = all(isinstance(key, str) and not key.startswith("$") for key in value)
        return dict(encoded) if plain else {"$dict": encoded}
    if type(value) in (list, tuple):
        members = [_encode(v, f"{at}[{i}]", tensors) for i, v in enumerate(value)]
        return members if isinstance(value, list) else {"$tuple": members}
    if type(value) is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if type(value) in (int, str):
        return value
    if type(value) is bytes:
        return {"$bytes": base64.b64encode(value).decode("ascii")}
    raise CheckpointError(
        f"checkpoint: cannot store {at} of {type(value)}; expected dicts, lists, tuples, tensors, "
        "numpy arrays, numbers, strings, bytes, bools or None"
    )


def _checked_key(key: Any, at: str) -> Any:
    if key is None or type(key) in (str, int, bool):
        return key
    raise CheckpointError(
        f"checkpoint: cannot store {at}: expected keys that are strings, integers, bools or None, "
        f"got {key!r} of {type(key)}"
    )


def _from_numpy(value: Any, at: str) -> torch.Tensor:
    try:
        return torch.from_numpy(np.array(value, order="C"))
    except TypeError as error:
        raise CheckpointError(
            f"checkpoint: cannot store {at}, an array of dtype {value.dtype}; expected bool, "
            "integers, floats up to 64 bits or complex64"
        ) from error


def _keep(tensor: torch.Tensor, at: str, tensors: dict[str, torch.Tensor]) -> str:
    """Add the tensor under a new key, in the form that safetensors accepts."""
    if tensor.layout is not torch.strided or tensor.dtype not in _DTYPES:
        raise CheckpointError(
            f"checkpoint: cannot store {at}, a {tensor.layout} tensor of {tensor.dtype}; expected "
            "a dense tensor of bool, integers, floats up to 64 bits or complex64"
        )
    key = str(len(tensors))
    tensor = tensor.resolve_conj().resolve_neg().cpu()
    # safetensors refuses tensors that share memory
    tensors[key] = tensor.clone(memory_format=torch.contiguous_format)
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
