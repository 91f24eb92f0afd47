"""PPO and PPO-ptx: the driver's loop over rollout, reward, reference and learner.

Owns the order of things, and what is logged and saved. The roles compute (`rlhf.roles`), wherever their placement puts
them; the formulas stand in `rlhf.algorithms`, what is averaged for the log in `ppo_measures`.
"""

import logging
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import Any

import numpy as np

from reward.interface import RewardOutput, RewardRequest
from rlhf.algorithms.kl import AdaptiveKlController, FixedKlController, KlController
from rlhf.config import AdaptiveKl, KlConfig, PpoConfig
from rlhf.experience import build_experience
from rlhf.optimization import NonFiniteLossError
from rlhf.reports.closing import print_closing
from rlhf.reports.page import write_report
from rlhf.reports.training import generic_training_page
from rlhf.requests import reward_requests
from rlhf.role_groups import CanarySequences, PublishedWeights, RoleGroups, canaries_of, open_roles
from rlhf.runtime.kept_checkpoints import BEST_MODEL, KeptCheckpoints
from rlhf.runtime.metrics import MetricLogger
from rlhf.runtime.run_folder import RunFolder, refuse_existing_run
from rlhf.runtime.training_run import open_training_run
from rlhf.runtime.training_state import TrainingState, with_owner
from rlhf.trainers.ppo_inputs import PpoInputs
from rlhf.trainers.ppo_measures import (
    component_measures,
    mean_of_scored,
    rollout_measures,
    start_and_end,
    warn_of_unscored,
)
from rlhf.trainers.ppo_samples import JudgedBatch
from rollout.buffer import Rollout, RolloutBuffer
from rollout.prompts import PromptStream
from rollout.types import PerToken, Prompt, RolloutBatch

Metrics = dict[str, float]

logger = logging.getLogger(__name__)

# The progress samples use the same sampling noise every time, under a step number that training never reaches.
_SAMPLE_NOISE_STEP = 2**31 - 1


def run(config: PpoConfig, *, resume: bool) -> None:
    """Runs `rlhf ppo`: the loop, and run_dir with metrics, samples, checkpoints, the final model, summary and report.

    Raises:
        ValueError: what the user can fix, before any actor starts where that is possible.
        NonFiniteLossError: training stopped; the state before the bad step is saved.
    """
    if not resume:
        refuse_existing_run(config.run_dir)
    inputs = PpoInputs(config)
    opened_run = open_training_run(config, resume=resume, stage="ppo", total_steps=config.steps)
    opened_roles = _open_fitting_roles(config, inputs)
    with ExitStack() as stack:
        if resume:
            run = stack.enter_context(opened_run)
            roles = stack.enter_context(opened_roles)
        else:
            # What the roles refuse must not leave a folder that holds a run.
            roles = stack.enter_context(opened_roles)
            run = stack.enter_context(opened_run)
        trainer = PpoTrainer(config, inputs, roles, run.folder, run.metrics)
        if run.checkpoint is not None:
            trainer.restore(run.checkpoint)
        summary = trainer.train()
        roles.learn("save_model", str(run.folder.path / "model"))
        run.metrics.close(summary)
        write_report(run.folder.path, generic_training_page(run.folder.path, "PPO"))
    print_closing(run.folder.path)


@contextmanager
def _open_fitting_roles(config: PpoConfig, inputs: "PpoInputs") -> Iterator[RoleGroups]:
    """The roles, once every prompt is known to fit into their model's context."""
    with open_roles(config) as roles:
        inputs.require_room(roles.learn("context_tokens"), config)
        yield roles


class PpoTrainer:
    """The state between steps: prompt stream, KL controller, counters; `step()` is the algorithm."""

    def __init__(
        self, config: PpoConfig, inputs: PpoInputs, roles: RoleGroups, folder: RunFolder, metrics: MetricLogger
    ) -> None:
        self._config, self._inputs, self._roles, self._folder, self._metrics = config, inputs, roles, folder, metrics
        self._stream = PromptStream(inputs.prompts, seed=config.seed)
        self._kl = kl_controller(config.algorithm.kl)
        self._steps_done = 0
        self._saved_step: int | None = None
        self._checkpoints = KeptCheckpoints(folder, config.checkpoint, config.steps)
        self._version = 0
        self._buffer = RolloutBuffer(max_policy_age=config.rollout.max_policy_age, cancel=roles.rollout.stop)
        self._rollouts = 0
        self._canaries: CanarySequences | None = None
        self._judged: JudgedBatch | None = None
        self._is_synced = False
        self._episodes = 0
        self._tokens = self._logged_tokens = 0
        self._start_perplexity: float | None = None
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def train(self) -> dict[str, Any]:
        """Steps to the end; returns the summary."""
        self._weights = self._roles.publish(self._version, canaries=self._canaries)
        if self._is_synced:
            self._roles.load(self._weights)
        with closing(self._buffer):
            if self._steps_done == 0:
                self._show_samples()
            while self._steps_done < self._config.steps:
                metrics = self._step_or_save()
                self._steps_done += 1
                self._after_step(metrics)
        return self._summary()

    def step(self) -> Metrics:
        """One PPO step (Ouyang et al. 2022, section 3.5): consumes prompts, produces a policy one version newer."""
        config = self._config
        with self._timed("rollout_wait"):
            self._run_ahead()
            rollout = self._buffer.take(self._version)
        batch = rollout.batch
        with self._timed("score"):
            requests = reward_requests(batch, self._inputs.tokenizer)
            reward, reference_logprobs, values = self._judge(batch, requests)
            self._judged = JudgedBatch(batch, requests, reward, reference_logprobs)
        with self._timed("experience"):
            experience, metrics = build_experience(
                batch,
                reward,
                reference_logprobs,
                values,
                algorithm=config.algorithm,
                kl_coefficient=self._kl.coefficient,
            )
        with self._timed("update"):
            metrics |= self._roles.learn("update", experience, step=self._steps_done)
        metrics["objective/kl_coef"] = self._kl.coefficient
        self._kl.update(metrics["objective/kl"], len(experience))
        with self._timed("sync"):
            self._version += 1
            metrics = {**rollout.metrics} | metrics | self._publish(batch)
        self._episodes += len(batch)
        self._tokens += sum(len(completion.token_ids) for completion in batch.completions)
        return metrics | component_measures(reward) | rollout_measures(batch, newest_version=self._version - 1)

    def restore(self, state: TrainingState) -> None:
        """Continues from a checkpoint: learner, streams, controller and counters.

        `train` gives the weights to every worker.
        """
        prompts = {prompt.id: prompt for prompt in self._inputs.prompts}
        self._roles.learn("load_state", state)
        driver = state.values["driver"]
        self._stream.load_state_dict(driver["prompts"])
        self._kl.load_state_dict(driver["kl"])
        self._episodes, self._tokens, self._version = driver["episodes"], driver["tokens"], driver["version"]
        self._logged_tokens = self._tokens
        self._steps_done = self._saved_step = state.step
        self._buffer.load_state(state.tensors_of("ahead"), driver["ahead"], prompts)
        self._rollouts, self._is_synced = driver["rollouts"], driver["synced"]
        self._start_perplexity = driver["start_perplexity"]
        if driver["canaries"] is not None:
            ids = [[np.array(row, np.int32) for row in rows] for rows in driver["canaries"]]
            self._canaries = (ids[0], ids[1])

    def _step_or_save(self) -> Metrics:
        """A step; where it diverges, the state from before the bad optimizer step is saved."""
        try:
            return self.step()
        except NonFiniteLossError:
            # Earlier checkpoints stay beside that one, because the damage may be older, and so does one of this very
            # step, from before its first minibatch.
            if self._saved_step != self._steps_done:
                self._save(beside_last=1)
            raise

    def _run_ahead(self) -> None:
        """Starts the rollouts of this step and of the next `max_policy_age`, as far as the run goes.

        So step k has samples of version k - max_policy_age, of 0 at first: always the same one, whoever is faster.
        """
        wanted = min(self._config.rollout.max_policy_age + 1, self._config.steps - self._steps_done)
        while len(self._buffer) < wanted:
            self._start_rollout()

    def _start_rollout(self) -> None:
        prompts = self._stream.next(self._config.rollout.prompts_per_step)
        self._buffer.start(partial(self._make_rollout, self._weights, prompts, self._rollouts))
        self._rollouts += 1

    def _make_rollout(self, weights: PublishedWeights, prompts: Sequence[Prompt], number: int) -> Rollout:
        """One rollout; runs beside everything else where generation runs ahead."""
        start = time.perf_counter()
        answered = self._answer(weights, prompts, self._config.rollout.responses_per_prompt, number)
        seconds = {"time/rollout": time.perf_counter() - start}
        return Rollout(answered.batch, {**answered.metrics, **self._roles.rollout.drain_metrics(), **seconds})

    def _answer(
        self, weights: PublishedWeights, prompts: Sequence[Prompt], responses_per_prompt: int, noise_step: int
    ) -> Rollout:
        """Answers by exactly these weights; the metrics are those of bringing them to the workers."""
        metrics = self._roles.load(weights)
        batch = self._roles.generate(
            prompts, responses_per_prompt, seed=self._config.seed, step=noise_step, version=weights.version
        )
        return Rollout(batch, metrics)

    def _publish(self, batch: RolloutBatch) -> Metrics:
        """Offers the new weights, with sequences of this step to prove them.

        Workers take them now, or, where they are busy ahead, before the first rollout that needs them.
        """
        self._canaries = canaries_of(batch)
        self._weights = self._roles.publish(self._version, canaries=self._canaries)
        return self._roles.load(self._weights) if not self._config.rollout.max_policy_age else {}

    def _judge(
        self, batch: RolloutBatch, requests: Sequence[RewardRequest]
    ) -> tuple[RewardOutput, list[PerToken], list[PerToken]]:
        """Scores, reference log-probs and, where there is a critic, values.

        Asked for together, so that they overlap where placement allows it.
        """
        prompts = [prompt.token_ids for prompt in batch.prompts]
        responses = [completion.token_ids for completion in batch.completions]
        scores = self._roles.ask_scores(requests)
        reference = self._roles.ask_reference_logprobs(prompts, responses)
        values = self._roles.learner.call("values", prompts, responses) if self._config.has_critic else None
        reward = scores()
        warn_of_unscored(reward)
        return reward, reference(), [] if values is None else values.result(self._roles.timeout_seconds)

    def _after_step(self, metrics: Metrics) -> None:
        """Samples, checkpoint and the log line of the step that just ended."""
        config = self._config
        is_last = self._steps_done == config.steps
        if is_last or self._steps_done % config.sample_every_steps == 0:
            with self._timed("eval"):
                metrics |= self._show_samples()
        seconds = {f"time/{phase}": value for phase, value in self._seconds.items()}
        seconds["time/step"] = sum(seconds.values())
        tokens = self._tokens - self._logged_tokens
        self._logged_tokens = self._tokens
        metrics |= seconds | {
            "perf/samples_per_s": self._episodes_per_step / seconds["time/step"],
            "perf/tokens_per_s": tokens / seconds["time/step"],
            "progress/episodes": float(self._episodes),
            "progress/tokens": float(self._tokens),
            "progress/epoch": self._stream.epoch_progress - self._epochs_ahead,
        }
        self._seconds.clear()
        self._metrics.log(self._steps_done, metrics)
        # After the line, so that no checkpoint knows of a step that metrics.jsonl has lost; its time is told with the
        # next one.
        self._checkpoints.note(self._steps_done, metrics)
        if self._checkpoints.is_due(self._steps_done):
            with self._timed("checkpoint"):
                if self._checkpoints.best_step == self._steps_done:
                    self._roles.learn("save_model", str(self._folder.path / BEST_MODEL))
                self._save()

    def _show_samples(self) -> Metrics:
        """Answers the fixed prompts with the fixed noise, scores them, and measures the alignment tax.

        Beside these answers stand the worst and the longest of the step that has just ended.
        """
        metrics: Metrics = {}
        if self._inputs.sample_prompts:
            answer = partial(self._answer, self._weights, self._inputs.sample_prompts, 1, _SAMPLE_NOISE_STEP)
            answered = self._buffer.run(answer)
            batch = answered.batch
            metrics |= answered.metrics
            requests = reward_requests(batch, self._inputs.tokenizer)
            scores = self._roles.ask_scores(requests)
            responses = [completion.token_ids for completion in batch.completions]
            prompts = [prompt.token_ids for prompt in batch.prompts]
            reference = self._roles.ask_reference_logprobs(prompts, responses)
            fixed = JudgedBatch(batch, requests, scores(), reference())
            of_the_step = [] if self._judged is None else self._judged.worst_and_longest()
            self._metrics.log_samples(self._steps_done, fixed.rows("fixed") + of_the_step)
            metrics["eval/score"] = mean_of_scored(fixed.reward.scores)
        if self._inputs.held_out_texts:
            perplexity = self._roles.learn("perplexity", self._inputs.held_out_texts)
            self._start_perplexity = self._start_perplexity or perplexity
            metrics["eval/pretrain_perplexity"] = perplexity
            metrics["eval/alignment_tax"] = math.log(perplexity / self._start_perplexity)
        return metrics

    @property
    def _episodes_per_step(self) -> int:
        return self._config.rollout.prompts_per_step * self._config.rollout.responses_per_prompt

    @property
    def _epochs_ahead(self) -> float:
        """Passes over the prompts that were taken and not learned from yet."""
        return len(self._buffer) * self._config.rollout.prompts_per_step / len(self._inputs.prompts)

    def _save(self, *, beside_last: int = 0) -> None:
        tensors, values = self._roles.learn("state")
        ahead_tensors, ahead = self._buffer.state()
        canaries = None if self._canaries is None else [[row.tolist() for row in rows] for rows in self._canaries]
        driver = {
            "prompts": self._stream.state_dict(),
            "kl": self._kl.state_dict(),
            "episodes": self._episodes,
            "tokens": self._tokens,
            "version": self._version,
            "rollouts": self._rollouts,
            "ahead": ahead,
            "synced": self._roles.rollout.version == self._version,
            "canaries": canaries,
            "start_perplexity": self._start_perplexity,
        }
        tensors = {**tensors, **with_owner("ahead", ahead_tensors)}
        state = TrainingState(self._steps_done, tensors, {"learner": values, "driver": driver})
        self._checkpoints.save(state, beside_last=beside_last)
        self._saved_step = self._steps_done

    def _summary(self) -> dict[str, Any]:
        return {
            "steps": self._steps_done,
            "episodes": self._episodes,
            **start_and_end(self._folder.read_metrics()),
            "skipped_rows": len(self._inputs.skipped),
            **self._checkpoints.summary(),
        }

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._seconds[phase] += time.perf_counter() - start


def kl_controller(config: KlConfig) -> KlController:
    """The controller that `algorithm.kl` describes."""
    if isinstance(config, AdaptiveKl):
        return AdaptiveKlController(config.coefficient, target=config.target, horizon=config.horizon)
    return FixedKlController(config.coefficient)
