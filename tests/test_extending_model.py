"""A new decoder, encoder or code is one file and one line, and then a run trains it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DECODER = '''"""Every pixel by itself, from one linear layer."""

from torch import nn
from torch.nn import functional

from mbrl.world_model.decoders.base import Decoder


class LinearDecoder(Decoder):
    """Logits of all pixels at once."""

    def __init__(self, shape, levels, features, settings):
        super().__init__(shape, levels, settings)
        self.out = nn.Linear(features, shape[0] * levels * shape[1] * shape[2])

    def logits(self, features):
        return self.out(features).float().view(-1, self.levels, *self.shape)

    def nats(self, image, features, generator=None):
        logits = self.logits(features)
        return functional.cross_entropy(logits, image.long(), reduction="none").flatten(1)

    def sample(self, features, generator=None):
        return self.logits(features).argmax(1).byte()
'''
ENCODER = '''"""One linear layer."""

from torch import nn

from mbrl.world_model.encoder import Encoder


class LinearEncoder(Encoder):
    """Pixels to raw parameters."""

    def __init__(self, shape, raw_size, settings, context=0, location_size=None):
        super().__init__()
        self.out = nn.Linear(shape[0] * shape[1] * shape[2], raw_size)

    def forward(self, seen, context=None):
        return self.out(seen.frames.flatten(-3))
'''
CODE = '''"""Ordinary numbers, without noise."""

from mbrl.world_model.code import GaussianCode


class PlainCode(GaussianCode):
    """The mean of the Gaussian alone."""

    def sample(self, params, generator=None):
        return self.mode(params)
'''
NEW = '        "linear": Kind({}Settings, "mbrl.world_model.{}"),\n'
PARTS = {
    "decoder": (
        *("decoders/linear.py", DECODER, "decoders/settings.py", '        "pixelcnn": Kind('),
        NEW.format("Decoder", "decoders.linear:LinearDecoder"),
    ),
    "encoder": (
        *("linear.py", ENCODER, "settings.py", '        "normalised": Kind('),
        NEW.format("Encoder", "linear:LinearEncoder"),
    ),
    "code": (
        *("plain.py", CODE, "settings.py", '        "categorical": Kind('),
        NEW.format("Code", "plain:PlainCode"),
    ),
}
"""Of each part: its file and text, the table of its kinds, and the line that goes before one."""
SMALL = (
    *("env_steps=64", "collect.num_envs=2", "collect.prefill_steps=48", "run.video=false"),
    *("collect.steps_per_iteration=16", "learn_model.batch_size=2", "run.tensorboard=false"),
    *("learn_model.sequence_length=4", "learn_model.train_ratio=0.5", "learn_policy.dream_ratio=1"),
    *("policy.dreams=16", "evaluate.episodes=1", "evaluate.final_episodes=1"),
    *("evaluate.num_envs=1", "run.threads=1", "device=cpu"),
)


def test_a_new_part_is_one_file_and_one_line_and_a_run_trains_it(tmp_path: Path) -> None:
    for package in ("mbrl", "agents", "envs", "configs"):
        shutil.copytree(
            ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    model = tmp_path / "mbrl" / "world_model"
    for file, text, table, before, line in PARTS.values():
        (model / file).write_text(text, encoding="utf-8")
        written = (model / table).read_text(encoding="utf-8")
        assert written.count(before) == 1
        (model / table).write_text(written.replace(before, line + before), encoding="utf-8")
    chosen = [f"world_model.{part}.kind=linear" for part in PARTS]
    done = subprocess.run(
        [sys.executable, "-m", "mbrl", "train", "minatar", *SMALL, *chosen, "run.dir=run"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [one["world_model/loss"] for one in map(json.loads, lines) if one["kind"] == "train"]
    assert losses and all(loss > 0 for loss in losses)
