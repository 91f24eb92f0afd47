"""Standard tasks of lm-evaluation-harness, as outcomes like those of our own tasks. The only file that imports lm_eval.

The harness asks the loaded model itself, with the adapter that is the policy; nothing is loaded twice. Owns the way
from its samples to right or wrong for each question, so that before and after are compared on the same questions.
"""

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from typing import Any, NoReturn

import numpy as np

from rlhf.evaluation.config import HarnessConfig
from rlhf.evaluation.models import LoadedModel
from rlhf.evaluation.task_scores import TaskOutcome

# lm_eval warns of an uninitialised model at every start, and of its own defaults.
_QUIET = "lm_eval"


class MissingHarnessError(RuntimeError):
    """lm-evaluation-harness is not installed."""


def require_harness() -> None:
    """Asks for the library before a model is loaded.

    Raises:
        MissingHarnessError: it is not there; the message says how to get it.
    """
    try:
        import_module("lm_eval")
    except ImportError as error:
        raise MissingHarnessError("harness needs the extra `harness`: pip install 'rlhf[harness]'") from error


def measure_harness(model: LoadedModel, config: HarnessConfig, *, seed: int) -> list[TaskOutcome]:
    """Every task and every score per question that it defines.

    A metric over the whole task alone, such as BLEU, has no value per question and is left out.

    Raises:
        MissingHarnessError: the library is not installed.
        ValueError: an unknown task, one without any score per question, or one that generates with virtual tokens.
    """
    require_harness()
    logging.getLogger(_QUIET).setLevel(logging.ERROR)
    tasks = _task_manager(config.include_path)
    unknown = [name for name in config.tasks if name not in tasks.all_tasks]
    if unknown:
        raise ValueError(
            f"harness.tasks: {', '.join(unknown)} is no task of lm-evaluation-harness"
            f"{f' nor of {config.include_path}' if config.include_path else ''}; `lm-eval ls tasks` lists them"
        )
    with model.transformers_model() as plain:
        language_model: Any = import_module("lm_eval.models.huggingface").HFLM(
            pretrained=plain, tokenizer=model.tokenizer, max_length=model.context_tokens, batch_size=config.batch_rows
        )
        if model.virtual_tokens:
            language_model._model_generate = _refuse_to_generate
        # The harness prints progress and counts, which would stand between our own lines.
        with contextlib.redirect_stdout(io.StringIO()):
            results = import_module("lm_eval").simple_evaluate(
                model=language_model,
                tasks=list(config.tasks),
                num_fewshot=config.shots,
                limit=config.rows,
                task_manager=tasks,
                bootstrap_iters=0,
                random_seed=seed,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                fewshot_random_seed=seed,
            )
    return list(_outcomes(results))


def _refuse_to_generate(*_: object, **__: object) -> NoReturn:
    """`generate` of transformers counts positions without the virtual tokens, from its second token on."""
    raise ValueError(
        "harness.tasks: a task asks for written answers, and the adapter puts virtual tokens before every row, which "
        "the harness does not know of when it generates; name tasks that compare given answers"
    )


@cache
def _task_manager(include_path: str | None) -> Any:
    """What the harness knows of tasks; reading thousands of definitions takes seconds, and every model asks."""
    return import_module("lm_eval.tasks").TaskManager(include_path=include_path)


def _outcomes(results: Mapping[str, Any]) -> Iterator[TaskOutcome]:
    for task, samples in results["samples"].items():
        scores = question_scores(samples)
        if not scores:
            raise ValueError(
                f"harness.tasks: {task} has no score per question, which before and after need; leave it out"
            )
        yield TaskOutcome(task, int(results["n-shot"][task]), scores)


def question_scores(samples: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """By metric, (Q,) the score of each question in the order of the task.

    Args:
        samples: What the harness logs: an object for each question and filter, with `doc_id`, `filter`, `metrics`.
    """
    filters = list(dict.fromkeys(sample["filter"] for sample in samples))
    scores: dict[str, np.ndarray] = {}
    for chosen in filters:
        rows = sorted((sample for sample in samples if sample["filter"] == chosen), key=lambda sample: sample["doc_id"])
        for metric in rows[0]["metrics"]:
            values = [row[metric] for row in rows]
            if all(isinstance(value, int | float) for value in values):
                name = metric if len(filters) == 1 else f"{metric}, {chosen}"
                scores[name] = np.array(values, np.float64)
    return scores
