"""Everything that is measured, in the order that loads each model once: candidate, further models, baseline.

The baseline comes last, because it then knows the answers whose log-probs it is asked for. Owns this order; numbers for
the summary are made of the result by `summary`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from policies.config import ModelConfig
from reward.composite import build_reward
from rlhf.config import EvalConfig
from rlhf.evaluation.answers import Answers, Evaluator
from rlhf.evaluation.comparing import ComparingJudge, SwappedOutcomes, judge_both_orders
from rlhf.evaluation.harness import measure_harness
from rlhf.evaluation.models import LoadedModel
from rlhf.evaluation.setting import Setting
from rlhf.evaluation.task_scores import TaskOutcome, measure_tasks

CANDIDATE, BASELINE = "candidate", "baseline"


@dataclass(frozen=True, slots=True)
class Measured:
    """One model's answers and tasks.

    Attributes:
        name: `candidate`, `baseline`, or the folder of a further model.
        answers: Scored answers.
        tasks: Outcomes on tasks.
        kl: KL to the baseline, nats per answer.
    """

    name: str
    answers: Answers
    tasks: Sequence[TaskOutcome]
    kl: float = 0.0


@dataclass(frozen=True, slots=True)
class Measurements:
    """All models.

    Attributes:
        candidate: The model in question.
        baseline: What it is compared with.
        others: Further models.
        more: Further answers of the baseline, for best-of-n; None unless asked.
        verdicts: Outcomes by judge that compares.
    """

    candidate: Measured
    baseline: Measured
    others: Sequence[Measured] = ()
    more: Answers | None = None
    verdicts: Mapping[str, SwappedOutcomes] = field(default_factory=dict[str, SwappedOutcomes])


def measure(config: EvalConfig, setting: Setting, judges: Mapping[str, ComparingJudge]) -> Measurements:
    """Answers, scores, verdicts and tasks of every model that `config` names.

    Raises:
        ValueError: a model cannot be loaded, or a task does not fit into its context.
    """
    evaluator = _evaluator(config, setting)
    names = [CANDIDATE, *model_names([model.path for model in config.models])]
    rivals = [
        _measured(name, model, evaluator, config, setting)
        for name, model in zip(names, [config.model, *config.models], strict=True)
    ]
    loaded = LoadedModel(config.baseline)
    baseline = _asked(BASELINE, loaded, evaluator, config, setting)
    more = evaluator.more_answers(loaded, config.best_of_n.samples) if config.best_of_n is not None else None
    rivals = [Measured(rival.name, rival.answers, rival.tasks, evaluator.kl(rival.answers, loaded)) for rival in rivals]
    return Measurements(rivals[0], baseline, rivals[1:], more, _verdicts(judges, rivals[0].answers, baseline.answers))


def _evaluator(config: EvalConfig, setting: Setting) -> Evaluator:
    options: dict[str, Any] = {"seed": config.seed, "responses_per_prompt": config.responses_per_prompt}
    judge = build_reward(config.reward, policy_tokenizer=setting.tokenizer, shared_backbone=None)
    return Evaluator(setting.prompts, judge, sampling=config.sampling, texts=setting.texts, **options)


def _measured(name: str, model: ModelConfig, evaluator: Evaluator, config: EvalConfig, setting: Setting) -> Measured:
    # A function of its own, so that the model is gone from memory before the next one is loaded.
    return _asked(name, LoadedModel(model), evaluator, config, setting)


def _asked(name: str, model: LoadedModel, evaluator: Evaluator, config: EvalConfig, setting: Setting) -> Measured:
    # Tasks first: one that does not fit into the context is known before the answers are sampled.
    tasks = measure_tasks(model, setting.tasks, config.tasks, seed=config.seed)
    if config.harness is not None:
        tasks += measure_harness(model, config.harness, seed=config.seed)
    return Measured(name, evaluator.answer(model), tasks)


def _verdicts(
    judges: Mapping[str, ComparingJudge], candidate: Answers, baseline: Answers
) -> dict[str, SwappedOutcomes]:
    prompts = [prompt.text for prompt in candidate.batch.prompts]
    return {name: judge_both_orders(judge, prompts, candidate.texts, baseline.texts) for name, judge in judges.items()}


def model_names(paths: Sequence[str]) -> list[str]:
    """The shortest ends of the paths that tell them apart; `runs/x/model` is the model of run x."""
    parts = [path.rstrip("/").split("/") for path in paths]
    parts = [part[:-1] if len(part) > 1 and part[-1] == "model" else part for part in parts]
    longest = max((len(part) for part in parts), default=1)
    for length in range(1, longest + 1):
        names = [Path(*part[-length:]).as_posix() for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{'/'.join(part)} ({number})" for number, part in enumerate(parts, start=1)]
