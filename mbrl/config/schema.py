"""Every setting of a run in one frozen tree; where each part is defined beside its user.

A config is a YAML file with only what differs from the defaults (`extends:` stacks files), plus
`key=value` overrides with dots. Everything is checked before anything starts: unknown keys, types,
ranges and contradictions are reported together, each with file and line (`mbrl.config.file`). This
module imports neither Ray nor the algorithms, so a check takes no longer than reading the file.
"""

from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, create_model, model_validator

from agents.baselines import BASELINES
from agents.settings import DreamPolicySettings
from envs.settings import EnvSettings
from mbrl.config import file as config_file
from mbrl.config.base import Settings
from mbrl.world_model.settings import WorldModelSettings

DEVICES = r"^(auto|cpu|cuda(:\d+)?)$"
"""What a device may be called."""

WITH_WORLD_MODEL = ("dream", "model_free")
"""Agents that act on a world model's features. `dream` learns in its dreams; `model_free` is the
control: the same policy learner on the real steps it collects, without a dream."""

AGENTS = (*WITH_WORLD_MODEL, *BASELINES, "random")
"""Who can act and learn: `agent` in a config."""


MAX_EVALUATION_STEPS = 27_000
"""Longest episode of an evaluation by default: Atari's 108,000 frames, at four frames per step."""


class CollectSettings(Settings):
    """How real experience is gathered (`mbrl.collect`)."""

    num_collectors: int = Field(0, ge=0, description="Ray actors; 0 collects where the loop runs")
    num_envs: int = Field(8, ge=1, description="environments each collector steps in one batch")
    steps_per_iteration: int = Field(64, ge=1, description="env steps between rounds of learning")
    prefill_steps: int = Field(512, ge=1, description="random steps before learning; they count")
    until_reward: bool = Field(
        True, description="go on at random, and learn no policy, until a reward is not 0"
    )
    repeat: float | None = Field(
        None,
        gt=1,
        description="a random action is held for n steps with probability ~ n ** -repeat; "
        "default: for one",
    )
    explore: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of environments that act at random, while that earns more than the "
        "policy; not with agent=model_free, which learns from what its policy did",
    )
    fragment_steps: int = Field(256, ge=1, description="a fragment is cut after this many steps")
    fragment_s: float = Field(30.0, gt=0, description="or after this many seconds")
    vector: Literal["sync", "subprocess"] = Field(
        "sync",
        description="subprocess gives each environment a process: they step side by side, and one "
        "that hangs or takes its process down is a crash. The steps are the same",
    )
    max_restarts: int = Field(100, ge=0, description="crashes in a row before the run stops")

    @property
    def apart(self) -> bool:
        """Whether each environment gets a process of its own."""
        return self.vector == "subprocess"


class ReplaySettings(Settings):
    """What is kept and what is sampled (`mbrl.replay`)."""

    init_from: Path | None = Field(
        None,
        description="a run or replay folder whose steps are the run's first env steps, in place of "
        "random ones; with env_steps no more than those, or 0, the run learns offline",
    )
    capacity_steps: int = Field(1_000_000, ge=1, description="newest steps that are sampled from")
    ring_dir: Path | None = Field(
        None, description="folder of the memory-mapped ring; default: the system's temporary one"
    )
    max_disk_gb: float | None = Field(
        None, gt=0, description="oldest segments beyond this are deleted; default: keep all"
    )
    holdout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the episodes that the world model is not trained on, for the metrics "
        "`holdout/*`; their steps count as env steps all the same",
    )


class LearnModelSettings(Settings):
    """How the world model is trained (`mbrl.learn_model`)."""

    train_ratio: float = Field(384.0, gt=0, description="replayed rows per collected env step")
    batch_size: int = Field(64, ge=1, description="B, sequences per update of all learners")
    sequence_length: int = Field(16, ge=2, description="T, rows per sequence")
    lr: float = Field(1e-3, gt=0, description="Adam step size")
    adam_eps: float = Field(1e-6, gt=0, description="Adam epsilon")
    warmup_updates: int = Field(100, ge=0, description="in which the step size grows from zero")
    halve_after: int | None = Field(
        None, ge=1, description="the step size is lr / (1 + updates / halve_after); null: lr"
    )
    grad_clip: float = Field(100.0, gt=0, description="largest global norm of the gradient")
    num_learners: int = Field(0, ge=0, description="Ray actors (DDP); 0 learns where the loop runs")
    gpus_per_learner: float = Field(0.0, ge=0, description="GPUs each learner actor asks Ray for")
    max_starts: int = Field(16384, ge=1, description="latest posterior latents as dreams' starts")
    rewarded: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the sequences, at least, in which a reward other than 0 arrives; "
        "dreams start from these sequences too",
    )
    train_dynamics: bool = Field(
        True,
        description="false, a control: state and prior keep their first weights, all else learns",
    )


class LearnPolicySettings(Settings):
    """How much the policy learns in the dream; how it learns is `policy`."""

    dream_ratio: float = Field(480.0, gt=0, description="imagined steps per collected env step")
    num_learners: int = Field(0, ge=0, description="RLlib's actors; 0 learns where the loop runs")


class EvaluateSettings(Settings):
    """When and how the agent is judged (`mbrl.evaluate`)."""

    every_steps: int = Field(1000, ge=1, description="between evaluations; the end is always one")
    episodes: int = Field(20, ge=1, description="episodes of each evaluation")
    final_episodes: int = Field(50, ge=1, description="episodes of the last one")
    num_envs: int = Field(10, ge=1, description="environments stepped in one batch")
    max_episode_steps: int = Field(
        MAX_EVALUATION_STEPS,
        ge=1,
        description="an episode still open after so many is cut, scored by then and counted as cut",
    )
    explore: bool = Field(False, description="sample actions instead of taking the most likely")
    seed: int = Field(1_000_000, ge=0, description="the same for all agents that are compared")


class RunSettings(Settings):
    """Where a run lives and what it writes."""

    dir: Path | None = Field(None, description="run folder; default: runs/<name>")
    checkpoint_every_steps: int = Field(1000, ge=1, description="env steps between checkpoints")
    keep_checkpoints: int = Field(2, ge=1, description="newest checkpoints kept")
    video: bool = Field(True, description="dream video at every evaluation")
    tensorboard: bool = Field(True, description="mirror metrics.jsonl to TensorBoard")
    wandb: bool = Field(False, description="mirror metrics to Weights & Biases (extra: wandb)")
    mlflow: bool = Field(False, description="mirror metrics to MLflow (extra: mlflow)")
    threads: int | None = Field(None, ge=1, description="of torch; default: torch's own choice")
    ray_address: str | None = Field(
        None, description="Ray head to join (auto: any); default: the job's, else one of our own"
    )


class _OurSections(Settings):
    """Everything but what the list of baselines decides; `Config` goes on from here."""

    name: str = Field("run", pattern=r"^[\w.-]+$", description="names the run folder")
    seed: int = Field(0, ge=0, description="root of every random stream of the run")
    agent: str = Field("dream", description="who acts and learns")
    env: EnvSettings
    env_steps: int = Field(
        10_000, ge=0, description="real environment steps, prefill or replay.init_from included"
    )
    device: str = Field("auto", pattern=DEVICES, description="auto takes a GPU if there is one")
    run: RunSettings = RunSettings()
    collect: CollectSettings = CollectSettings()
    replay: ReplaySettings = ReplaySettings()
    world_model: WorldModelSettings = WorldModelSettings()
    learn_model: LearnModelSettings = LearnModelSettings()
    learn_policy: LearnPolicySettings = LearnPolicySettings()
    policy: DreamPolicySettings = DreamPolicySettings()


if TYPE_CHECKING:
    _AllSections = _OurSections
else:  # `agent` says its choices, and every baseline has a section
    _AllSections = create_model(
        "_AllSections",
        __base__=_OurSections,
        agent=(Literal[AGENTS], _OurSections.model_fields["agent"]),
        **{name: (found.settings, found.settings()) for name, found in BASELINES.items()},
    )


class Config(_AllSections):
    """One run."""

    evaluate: EvaluateSettings = EvaluateSettings()

    @property
    def run_dir(self) -> Path:
        """The run folder."""
        return self.run.dir or Path("runs") / self.name

    @property
    def collectors(self) -> int:
        """Collectors at work, counting the training process as one when there are no actors."""
        return max(1, self.collect.num_collectors)

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        learn = self.learn_model
        width = self.collectors * self.collect.num_envs
        for name, divisor, what in (
            ("collect.steps_per_iteration", width, "(collectors x environments)"),
            ("collect.prefill_steps", width, "(collectors x environments)"),
            ("learn_model.batch_size", learn.num_learners, "learners"),
            ("policy.dreams", self.learn_policy.num_learners, "learners"),
        ):
            value = attrgetter(name)(self)
            if value % max(1, divisor):
                raise ValueError(f"{name}: expected a multiple of {divisor} {what}, got {value}")
        if self.env.step_timeout_s is not None and self.collect.vector != "subprocess":
            raise ValueError(
                "env.step_timeout_s: expected collect.vector=subprocess with it, as a step in this "
                f"process cannot be ended, got collect.vector={self.collect.vector}"
            )
        learners = learn.num_learners + self.learn_policy.num_learners
        if learners and self.device.startswith("cuda:") and self.device != "cuda:0":
            raise ValueError(
                f"device: expected cuda with num_learners, as Ray gives each learner its GPU, got "
                f"{self.device}; choose GPUs with CUDA_VISIBLE_DEVICES"
            )
        if self.replay.init_from is not None and self.agent != "dream":
            raise ValueError(
                f"replay.init_from: expected agent=dream, as all others learn from steps of their "
                f"own, got agent={self.agent}"
            )
        if self.env_steps == 0 and self.replay.init_from is None:
            raise ValueError("env_steps: expected 1 or more without replay.init_from, got 0")
        if self.agent not in WITH_WORLD_MODEL:
            return self
        if self.agent == "model_free" and self.learn_policy.num_learners:
            raise ValueError(
                "learn_policy.num_learners: expected 0 with agent=model_free, whose few real steps "
                f"are learned from where the loop runs, got {self.learn_policy.num_learners}"
            )
        for name in ("collect.prefill_steps", "replay.capacity_steps"):
            value = attrgetter(name)(self)
            if value < learn.sequence_length:
                raise ValueError(
                    f"{name}: expected at least learn_model.sequence_length = "
                    f"{learn.sequence_length}, got {value}"
                )
        owed = learn.train_ratio * min(self.collect.prefill_steps, self.collect.steps_per_iteration)
        rows = learn.batch_size * learn.sequence_length
        if owed < rows:
            raise ValueError(
                f"learn_model.train_ratio: expected a batch (batch_size x sequence_length = {rows} "
                f"rows) or more for every collect.steps_per_iteration, and for prefill_steps, "
                f"got {owed:g} rows; raise the ratio or those steps"
            )
        if self.replay.init_from is None and self.collect.prefill_steps > self.env_steps:
            raise ValueError(
                f"collect.prefill_steps: expected at most env_steps = {self.env_steps}, "
                f"got {self.collect.prefill_steps}"
            )
        return self


def load(path: Path | str, overrides: config_file.Overrides = ()) -> Config:
    """Read a config file, or one that is shipped by its name; see `mbrl.config.file.load`."""
    return config_file.load(Config, config_file.find_config(path), overrides)


def load_config(config: Config | Path | str, **settings: Any) -> Config:
    """The settings of a run, as Python values.

    Args:
        config: a YAML file, the name of a shipped one ("quickstart"), or settings made before.
        settings: what is changed, such as `env_steps=500`; below the top level by dotted name:
            `**{"env.id": "ALE/Pong-v5"}`. A section replaces the whole section.

    Raises:
        ConfigError: with every mistake found, each with its file and line.
    """
    if isinstance(config, Config):
        return config_file.change(config, settings) if settings else config
    return load(config, settings)
