"""How a model does on tasks, and what it forgot: right or wrong for each question, before and after.

Owns rank classification and exact match. Questions and shots are `tasks`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from policies.tokenization import encode_prompt
from reward.intervals import MeanDifference, mean_difference
from rlhf.evaluation.config import TasksConfig
from rlhf.evaluation.tasks import Task, TaskRow, contexts
from rlhf.requests import reward_requests
from rollout.config import SamplingConfig
from rollout.types import PerToken, Prompt, RolloutBatch, TokenIds

Array = NDArray[np.float64]

GREEDY_TEMPERATURE = 1e-3
"""The sampler has no greedy mode; here a token that is a hundredth of a nat behind comes once in 22,000 draws."""
_AROUND_AN_ANSWER = " \t\r\n.!?\"'`"


class AskedModel(Protocol):
    """What tasks need of a model: `rlhf.evaluation.models.LoadedModel` for decoders."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer."""
        ...

    @property
    def context_tokens(self) -> int:
        """Longest sequence that it reads."""
        ...

    def logprobs(self, prompts: Sequence[TokenIds], responses: Sequence[TokenIds]) -> Sequence[PerToken]:
        """(R,) log-probs of given continuations at temperature 1, nats."""
        ...

    def sample(self, prompts: Sequence[Prompt], sampling: SamplingConfig, *, seed: int) -> RolloutBatch:
        """An answer to every prompt."""
        ...


@dataclass(frozen=True, slots=True)
class TaskOutcome:
    """One model on one task with one number of shots.

    Attributes:
        task: Name of the task.
        shots: Solved rows in front of each question.
        correct: By measure, (Q,) 1 where right, else 0. Multiple choice has `sum` (the choice of the highest summed
            log-prob) and `mean` (of the highest log-prob per token), free answers have `exact`.
    """

    task: str
    shots: int
    correct: Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class TaskChange:
    """A task before and after.

    Attributes:
        task: Name of the task.
        shots: Solved rows in front of each question.
        measure: `sum`, `mean` or `exact`.
        questions: Q.
        before: Accuracy of the baseline.
        after: Accuracy of the candidate.
        difference: After minus before on the same questions; "below" is forgetting.
    """

    task: str
    shots: int
    measure: str
    questions: int
    before: float
    after: float
    difference: MeanDifference


def measure_tasks(model: AskedModel, tasks: Sequence[Task], config: TasksConfig, *, seed: int) -> list[TaskOutcome]:
    """Every task with every number of shots.

    Raises:
        ValueError: a question with its shots exceeds the model's context, or a task has too few rows.
    """
    return [_outcome(model, task, shots, config, seed) for task in tasks for shots in config.shots]


def task_changes(before: Sequence[TaskOutcome], after: Sequence[TaskOutcome], *, seed: int) -> list[TaskChange]:
    """Differences of two models that were asked the same, one for each task, number of shots and measure."""
    changes: list[TaskChange] = []
    for old, new in zip(before, after, strict=True):
        for measure, was in old.correct.items():
            now = new.correct[measure]
            difference = mean_difference(now - was, np.ones(len(was)), np.arange(len(was)), seed=seed)
            changes.append(
                TaskChange(old.task, old.shots, measure, len(was), float(was.mean()), float(now.mean()), difference)
            )
    return changes


def is_exact(response: str, answer: str) -> bool:
    """Whether a response is the answer: case, white space, quotes and final marks around it do not count."""
    return response.strip(_AROUND_AN_ANSWER).casefold() == answer.strip(_AROUND_AN_ANSWER).casefold()


def _outcome(model: AskedModel, task: Task, shots: int, config: TasksConfig, seed: int) -> TaskOutcome:
    texts = contexts(task, shots, config, seed=seed)
    asked = task.rows[: len(texts)]
    if task.kind == "multiple_choice":
        return TaskOutcome(task.name, shots, _ranked(model, task, shots, texts, asked))
    return TaskOutcome(task.name, shots, {"exact": _answered(model, task, shots, texts, asked, config, seed)})


def _ranked(
    model: AskedModel, task: Task, shots: int, texts: Sequence[str], rows: Sequence[TaskRow]
) -> dict[str, Array]:
    """Rank classification: the choice of the highest log-prob is the answer (Brown et al. 2020, section 2.4)."""
    prompts: list[TokenIds] = []
    continuations: list[TokenIds] = []
    for text, row in zip(texts, rows, strict=True):
        ids = encode_prompt(text, model.tokenizer)
        prompts += [ids] * len(row.choices)
        continuations += [_continuation(choice, model) for choice in row.choices]
    _require_room(model, task, shots, [len(p) + len(c) for p, c in zip(prompts, continuations, strict=True)])
    found = iter(model.logprobs(prompts, continuations))
    right: dict[str, list[float]] = {"sum": [], "mean": []}
    for row in rows:
        logprobs = [next(found) for _ in row.choices]
        correct = row.choices.index(row.answer)
        right["sum"].append(float(np.argmax([values.sum() for values in logprobs]) == correct))
        right["mean"].append(float(np.argmax([values.mean() for values in logprobs]) == correct))
    return {measure: np.array(values, np.float64) for measure, values in right.items()}


def _continuation(choice: str, model: AskedModel) -> TokenIds:
    ids = model.tokenizer(f" {choice.strip()}", add_special_tokens=False, verbose=False)["input_ids"]
    return np.array(ids, dtype=np.int32)


def _answered(
    model: AskedModel,
    task: Task,
    shots: int,
    texts: Sequence[str],
    rows: Sequence[TaskRow],
    config: TasksConfig,
    seed: int,
) -> Array:
    prompts = [
        Prompt(f"{task.name}/{shots}/{index}", text, encode_prompt(text, model.tokenizer))
        for index, text in enumerate(texts)
    ]
    _require_room(model, task, shots, [len(prompt.token_ids) + config.max_answer_tokens for prompt in prompts])
    sampling = SamplingConfig(
        temperature=GREEDY_TEMPERATURE, max_response_tokens=config.max_answer_tokens, stop_strings=("\n",)
    )
    responses = [
        request.response for request in reward_requests(model.sample(prompts, sampling, seed=seed), model.tokenizer)
    ]
    return np.array([is_exact(text, row.answer) for text, row in zip(responses, rows, strict=True)], np.float64)


def _require_room(model: AskedModel, task: Task, shots: int, lengths: Sequence[int]) -> None:
    longest = max(lengths)
    if longest > model.context_tokens:
        raise ValueError(
            f"tasks.shots={shots}: a question of task '{task.name}' has {longest} tokens with its shots and answer, "
            f"the model reads {model.context_tokens}; lower tasks.shots, or shorten the rows"
        )
