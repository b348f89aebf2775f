"""THE LOOP: collect, learn the world model, learn the policy in its dream, evaluate; and again.

`train` is the whole system on one screen; `Crew` holds the parts and gives each verb its body. What
runs as Ray actors (collectors, evaluations, learners) stands behind the same interface as what runs
in this process (`mbrl.actors`, `mbrl.learn_model`). All ratios are counts (replayed rows and
imagined steps per collected step), so a result does not depend on how fast the machine is.
"""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from agents.dream_ppo import DreamPPO, PolicyLearningError, Recording
from agents.numerics import restore_generator
from mbrl import baseline
from mbrl.acting import LatentPolicy
from mbrl.actors import Evaluations, LocalCollectors, RemoteCollectors
from mbrl.cluster import start_ray
from mbrl.collect import Receipt, spaces_of
from mbrl.config.schema import WITH_WORLD_MODEL, Config, load_config
from mbrl.device import pick_device
from mbrl.errors import ConfigError, Stopped, TrainingError
from mbrl.evaluate import EvalResult, judge
from mbrl.imagine import DreamEnv
from mbrl.learn_model import RemoteLearners, WorldModelLearner
from mbrl.real_steps import RealSteps
from mbrl.recorded import take_over
from mbrl.replay import ReplayStore
from mbrl.report.dream_video import write_dream_video
from mbrl.run.open import open_run
from mbrl.run.run import Run
from mbrl.schedule import Every, Ratio
from mbrl.seeding import seed

State = dict[str, Any]
logger = logging.getLogger(__name__)
Metrics = dict[str, float]


def train(config: Config, on_iteration: Callable[[Run], None] | None = None) -> dict[str, Any]:
    """Run, or resume, one training run to its end.

    Args:
        config: the run.
        on_iteration: called with the open run after each iteration. It may look, end the run with
            `Run.request_stop`, or raise, which ends it as a crash would.

    Returns what `result.json` holds.

    Raises:
        MbrlError: bad settings, bad data, or learning that cannot go on; what was collected and
            checkpointed before is on disk.
        SystemExit: with code 0, after a checkpoint, when the run was asked to stop.
    """
    pick_device(config.device)  # before there is a folder
    run = Run(config)
    with run:
        if run.finished:
            return run.result()
        if config.agent not in WITH_WORLD_MODEL:
            return baseline.train(run, on_iteration)
        crew = Crew(run)
        run.handle_signals()
        try:
            more = run.env_steps < crew.target
            if more:
                crew.begin_collecting()
                crew.make_up()
                more = not run.stopping
            while more:
                receipts = crew.collect()
                replay = crew.refresh_replay()
                more = run.env_steps < crew.target and not run.stopping
                if more:
                    crew.begin_collecting()
                model_metrics, starts = crew.learn_model(receipts)
                policy_metrics = crew.learn_policy(starts, receipts)
                crew.publish()
                crew.log(receipts, model_metrics, policy_metrics)
                crew.evaluate(last=run.env_steps >= crew.target)
                more = more and not run.stopping
                if crew.checkpoints_every.due(run.env_steps) or not more:
                    crew.save(replay)
                if on_iteration is not None:
                    on_iteration(run)
            if run.stopping and run.env_steps < crew.target:
                raise SystemExit(0)
            return run.finish(crew.final_evaluation())
        except Stopped:  # in the last evaluation, before which everything was saved
            raise SystemExit(0) from None
        finally:
            crew.close()


class Crew:
    """Everyone who works on a run, built once, in the roles `train` calls them by."""

    def __init__(self, run: Run) -> None:
        """Build from the run's config and, if it resumes, put everyone back where they were."""
        config = self.config = run.config
        self.run, self.films = run, config.run.video
        if config.run.threads:
            torch.set_num_threads(config.run.threads)
        both = spaces_of(config.env, config.collect.apart)
        self.observation_space, self.action_space = both
        start_ray(config)
        self.store = ReplayStore(run.dir / "replay", config.env.name, both)
        state = run.resumed
        self.store.restore(state["replay"]["pins"] if state else [])
        self.learner = self._make_learner()
        device = pick_device(config.device)
        if config.learn_policy.num_learners == 0:  # dreams are where the policy learns: here
            self.learner.model.to(device)
        self.device = self.learner.model.device
        try:
            self.policy = DreamPPO(
                config.policy,
                self.learner.model.feature_size,
                self.action_space,
                seed(config.seed, "policy"),
                num_learners=config.learn_policy.num_learners,
                device=str(device),
                feature_map=self.learner.model.feature_map,
            )
        except ValueError as error:
            raise ConfigError(str(error)) from error
        self.dream_generator = torch.Generator(self.device).manual_seed(seed(config.seed, "dream"))
        learn, policy = config.learn_model, config.policy
        self.updates = Ratio(learn.train_ratio, lot=learn.batch_size * learn.sequence_length)
        self.rounds = Ratio(config.learn_policy.dream_ratio, lot=policy.dreams * policy.horizon)
        # the env steps up to which actions were random; None: they still are
        self.random_until: int | None = None
        self.recorded = 0  # so many of the first env steps
        self.evaluations_every = Every(config.evaluate.every_steps)
        self.checkpoints_every = Every(config.run.checkpoint_every_steps)
        self.evaluations = Evaluations(run)
        self.owes_evaluation = False
        self.real_steps = (
            RealSteps(self.store, config, self.action_space)
            if config.agent == "model_free"
            else None
        )
        self.collectors: LocalCollectors | RemoteCollectors = (
            RemoteCollectors(run, self.store)
            if config.collect.num_collectors
            else LocalCollectors(run, self.store, self.latent_policy("act"))
        )
        if state is not None:
            self._restore(state)
        else:
            self._begin()
        self.run.progress.aim(self.target)
        self.publish()

    def _begin(self) -> None:
        """What a run begins with that another left behind."""
        config, before = self.config, self.config.world_model.init_from
        if before is not None:
            weights = open_run(before).world_model_weights()
            taken = self.learner.begin_with(weights, config.world_model.init_anew)
            self.run.progress.print(f"world model of {before}: {taken}")
        if config.replay.init_from is not None:
            self.recorded, rewarded = take_over(config.replay.init_from, self.store)
            if rewarded or not config.collect.until_reward:
                self.random_until = 0  # what is recorded was done for a reason, or no matter

    @property
    def target(self) -> int:
        """Env steps at which the run ends: those of its settings, and all that are recorded."""
        return max(self.config.env_steps, self.recorded)

    def begin_collecting(self) -> None:
        """Ask for the next fragment, of random actions until there is something to learn from."""
        if self.run.env_steps < self.recorded:
            return
        self.collectors.begin(self.next_steps(), self.run.env_steps, self.random_until is None)

    def next_steps(self) -> int:
        """Steps of the next fragment, in whole environments: the prefill, then an iteration's."""
        if self.run.env_steps == 0:
            return self.config.collect.prefill_steps
        width = self.config.collectors * self.config.collect.num_envs
        left = self.target - self.run.env_steps
        return max(0, min(self.config.collect.steps_per_iteration, -(-left // width) * width))

    def collect(self) -> list[Receipt]:
        """Wait for the fragment that was begun, and count its steps."""
        if self.run.env_steps < self.recorded:
            return self._count_recorded()
        self.run.progress.update(phase="collect")
        receipts = self.collectors.finish()
        steps = sum(receipt.steps for receipt in receipts)
        self.run.env_steps += steps
        rewarded = any(receipt.rewarded for receipt in receipts)
        if self.random_until is None and (rewarded or not self.config.collect.until_reward):
            self.random_until = self.run.env_steps
        self.run.spend(collected_steps=steps)
        self.run.progress.update(env_steps=self.run.env_steps)
        return receipts

    def _count_recorded(self) -> list[Receipt]:
        """The next piece of what is recorded, as if it had been collected just now."""
        left = self.recorded - self.run.env_steps
        steps = min(left, self.config.collect.steps_per_iteration)
        self.run.env_steps += steps
        self.run.spend(recorded_steps=steps)
        self.run.progress.update(env_steps=self.run.env_steps)
        return [Receipt(steps, [], 0, 0, 0.0)]

    def refresh_replay(self) -> State:
        """Take new segments into the rings; returns which segments the learners now stand on.

        Pinned for a checkpoint are all segments, or with a limit on disk only those in the ring.
        """
        self.learner.refresh()
        order = self.learner.segments()
        if self.config.replay.max_disk_gb is not None:
            return {"pins": order, "order": order}
        return {"pins": [info.name for info in self.store.segments()], "order": order}

    def learn_model(self, receipts: list[Receipt]) -> tuple[Metrics, Any]:
        """Train the world model on `train_ratio` replayed rows per collected step."""
        self.run.progress.update(phase="learn model")
        # a fragment owes at least one update, see `Config`, but for a shorter one at the very end
        updates = self.updates.due(sum(receipt.steps for receipt in receipts), at_least=1)
        metrics, starts = self.learner.learn(updates)
        self.run.spend(replayed_rows=updates * self.updates.lot, model_updates=updates)
        return metrics, starts

    def learn_policy(self, starts: Any, receipts: list[Receipt]) -> Metrics:
        """Train the policy on `dream_ratio` imagined steps per collected step.

        The control without a dream trains it on the real steps that were just collected.
        """
        rows = int(self.run.budget["replayed_rows"])
        self.run.progress.update(phase="learn policy", replayed_rows=rows)
        if self.real_steps is not None:
            return self._learn_from_real_steps(self.real_steps)
        rounds = self.rounds.due(sum(receipt.steps for receipt in receipts))
        if rounds == 0 or self.random_until is None:
            return {}
        dream = DreamEnv(
            self.learner.model,
            self.action_space,
            starts.to(self.device),
            self.config.policy.dreams,
            self.dream_generator,
        )
        metrics = self._learn(dream, rounds)
        self.run.spend(imagined_steps=rounds * self.rounds.lot, policy_rounds=rounds)
        return metrics

    def _learn_from_real_steps(self, real_steps: RealSteps) -> Metrics:
        """One round on what is new, if there is anything that the policy has chosen."""
        recording = real_steps.record(
            self.learner.model, self.dream_generator, self.random_until or self.run.env_steps
        )
        if recording is None:
            return {}
        metrics = self._learn(recording, 1)
        self.run.spend(policy_steps=metrics["dream_steps"], policy_rounds=1)
        return metrics

    def _learn(self, source: DreamEnv | Recording, rounds: int) -> Metrics:
        try:
            return self.policy.learn(source, rounds)
        except PolicyLearningError as error:
            raise TrainingError(f"policy: {error}") from error

    def publish(self) -> None:
        """Hand the newest weights to the collectors."""
        self.collectors.publish(self.learner.model, self.policy)

    def evaluate(self, last: bool) -> None:
        """If it is time: judge the newest weights on the real environment, and film the dream.

        With Ray collectors the evaluation runs beside training and is recorded when it is done. One
        that a request to stop cuts short is owed: the next process makes up for it.
        """
        due = self.evaluations_every.due(self.run.env_steps)
        if due and not last:
            self._begin_evaluation()
        if due or last:
            self._film()
        self.evaluations.record(wait=last or not self.evaluations.remote)

    def make_up(self) -> None:
        """Evaluate the weights that an earlier process was stopped at, if it owes that."""
        if self.owes_evaluation:
            self._begin_evaluation()
            self._film()
            self.evaluations.record(wait=not self.evaluations.remote)

    def _begin_evaluation(self) -> None:
        self.evaluations_every.done(self.run.env_steps)
        try:
            self.evaluations.begin(self.learner.model, self.policy, self.latent_policy)
            self.owes_evaluation = False
        except Stopped:
            self.owes_evaluation = True

    def final_evaluation(self) -> EvalResult:
        """The last evaluation, in this process, with `final_episodes`."""
        self.run.progress.update(phase="evaluate")
        policy = self.latent_policy("evaluate", self.run.env_steps)
        result = judge(policy, self.config, final=True, stop=lambda: self.run.stopping)
        self.run.record_evaluation(result, self.run.env_steps)
        return result

    def log(self, receipts: list[Receipt], model: Metrics, policy: Metrics) -> None:
        """One line of what this iteration did."""
        returns = [value for receipt in receipts for value in receipt.returns]
        collect: Metrics = {
            "collect/env_restarts": sum(receipt.env_restarts for receipt in receipts),
            "collect/actor_restarts": self.collectors.actor_restarts,
            "collect/unrepeatable": sum(receipt.unrepeatable for receipt in receipts),
            "collect/steps_per_s": sum(r.steps / r.seconds for r in receipts if r.seconds),
            "replay/quarantined": self.store.quarantined,
            "replay/rows_trained": self.run.budget.get("replayed_rows", 0),
            "policy/version": self.policy.version,
        }
        if returns:
            collect["collect/return"] = float(np.mean(returns))
            collect["collect/episodes"] = len(returns)
        collect |= {f"world_model/{name}": value for name, value in model.items()}
        collect |= {f"holdout/{name}": value for name, value in self.learner.held_out().items()}
        collect |= {f"policy/{name}": value for name, value in policy.items()}
        self.run.log.write("train", self.run.env_steps, collect)

    # -- saving and resuming ----------------------------------------------------------------------

    def save(self, replay: State) -> None:
        """Write a checkpoint that stands on `replay`, then delete the oldest segments beyond it."""
        self.checkpoints_every.done(self.run.env_steps)
        self.run.save(self.state_dict(replay))
        if (limit := self.config.replay.max_disk_gb) is not None:
            self.store.evict(int(limit * 1e9))

    def state_dict(self, replay: State) -> State:
        """Everything the run continues from."""
        self.evaluations.record(wait=True)
        pins = self.store.pin(replay["pins"])  # a segment may have broken since it was loaded
        here = set(pins)
        order = [name for name in replay["order"] if name in here]
        return {
            "replay": {"pins": pins, "order": order},
            "learner": self.learner.state_dict(),
            "policy": self.policy.get_state(),
            "dream_generator": self.dream_generator.get_state(),
            "random_until": self.random_until,
            "recorded": self.recorded,
            "credits": [self.updates.state_dict(), self.rounds.state_dict()],
            "marks": [self.evaluations_every.state_dict(), self.checkpoints_every.state_dict()],
            "collectors": self.collectors.state_dict(),
            "owes_evaluation": self.owes_evaluation,
        }

    def _restore(self, state: State) -> None:
        self.learner.refresh(state["replay"]["order"])
        self.learner.load_state_dict(state["learner"])
        self.policy.set_state(state["policy"])
        prefill = self.config.collect.prefill_steps  # a checkpoint of before had no more
        self.random_until = state.get("random_until", prefill + self.config.collect.num_envs)
        self.recorded = int(state.get("recorded", 0))
        restore_generator(self.dream_generator, state["dream_generator"])
        for ratio, credit in zip((self.updates, self.rounds), state["credits"], strict=True):
            ratio.load_state_dict(credit)
        boundaries = (self.evaluations_every, self.checkpoints_every)
        for every, mark in zip(boundaries, state["marks"], strict=True):
            every.load_state_dict(mark)
        self.collectors.load_state_dict(state["collectors"])
        self.owes_evaluation = bool(state.get("owes_evaluation", False))
        if self.real_steps is not None:
            self.real_steps.catch_up(self.random_until or self.run.env_steps)

    def close(self) -> None:
        """End everyone who was started."""
        self.collectors.close()
        self.policy.close()
        self.learner.close()

    def _make_learner(self) -> WorldModelLearner | RemoteLearners:
        config = self.config
        arguments: dict[str, Any] = {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "model": config.world_model,
            "settings": config.learn_model,
            "store": self.store,
            "capacity_steps": config.replay.capacity_steps,
            "ring_directory": config.replay.ring_dir,
            "root_seed": config.seed,
            "device": config.device,
            "holdout": config.replay.holdout,
        }
        if config.learn_model.num_learners:
            return RemoteLearners(arguments, config.learn_model)
        return WorldModelLearner(**arguments)

    def latent_policy(self, role: str, *index: int) -> LatentPolicy:
        """A policy on the newest weights of this process, with random streams of its own."""
        return LatentPolicy(
            self.learner.model,
            lambda: self.policy.module,
            self.action_space,
            seed(self.config.seed, role, *index),
            self.device,
        )

    def _film(self) -> None:
        """Film the dream; a picture that cannot be drawn is told of once, and ends no run."""
        if not self.films or self.run.stopping:
            return
        self.run.progress.update(phase="film the dream")
        path = self.run.dir / "videos" / f"dream-{self.run.env_steps:09d}.mp4"
        generator = torch.Generator(self.device).manual_seed(seed(self.config.seed, "video"))
        model, store = self.learner.model, self.store
        try:
            write_dream_video(path, model, store, generator, self.device, lambda: self.run.stopping)
        except Stopped:
            return
        except Exception:
            self.films = False
            logger.warning("the dream could not be filmed; the run goes on without", exc_info=True)


class _CallableModule(ModuleType):
    """Makes `mbrl.train(...)` work before and after something imports this file as a module."""

    def __call__(
        self,
        config: Config | Path | str,
        on_iteration: Callable[[Run], None] | None = None,
        **settings: Any,
    ) -> dict[str, Any]:
        """`train`, with the settings as `mbrl.load_config` takes them."""
        return train(load_config(config, **settings), on_iteration)


sys.modules[__name__].__class__ = _CallableModule
