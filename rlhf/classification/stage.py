"""`rlhf classify`: labels for texts from a language model, by patterns and words or by a head.

Owns the stage: rows and shots, the classifier, steps and checkpoints, the held-out result. What a classifier is made of
is `cloze` and `head`.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from policies.backbone import Backbone
from policies.causal import CausalPolicy
from policies.loading import load_backbone, policy_adapter, prepare_policy
from rlhf.classification.cloze import ClozeModel
from rlhf.classification.head import HeadModel
from rlhf.classification.label_model import LabelModel
from rlhf.classification.outcome import outcome_of
from rlhf.classification.page import classification_page
from rlhf.classification.predicting import lengths_of, predict
from rlhf.classification.prompts import build_prompts
from rlhf.classification.texts import LabelledData, LabelledText, read_labelled
from rlhf.classification.training import ClassifierTraining
from rlhf.config import ClassifyConfig
from rlhf.config.classify import ClozeMethod, HeadMethod
from rlhf.optimization import NonFiniteLossError
from rlhf.reports.closing import print_closing
from rlhf.reports.page import write_report
from rlhf.runtime.json_lines import write_objects
from rlhf.runtime.kept_checkpoints import KeptCheckpoints
from rlhf.runtime.memory import peak_memory_mib
from rlhf.runtime.training_run import TrainingRun, open_training_run

PREDICTIONS_FILE = "predictions.jsonl"
"""One object a held-out text: `row`, `label`, `predicted`, and `log_probs` of all labels, nats."""


def run(config: ClassifyConfig, *, resume: bool) -> None:
    """Trains (unless `epochs` is 0), labels the held-out texts, and leaves predictions, model, summary and report.

    Raises:
        ValueError: what the user can fix, before the run folder is made.
        NonFiniteLossError: training stopped; the state before the bad step is saved.
    """
    data = read_labelled(config.data, config.labels, seed=config.seed)
    backbone = load_backbone(config.model)
    model = build_model(config, backbone, data)
    data = _within(config, model, data, min(config.max_tokens, backbone.context_tokens))
    training = ClassifierTraining(config, model, backbone, data.train, seed=config.seed)
    with open_training_run(config, resume=resume, stage="classify", total_steps=max(training.total_steps, 1)) as run:
        if run.checkpoint is not None:
            training.restore(run.checkpoint)
        predictions = _train(config, run, training, model, data)
        folder = run.folder.path
        write_objects(folder / PREDICTIONS_FILE, _prediction_rows(predictions, data.held_out, config.labels))
        if training.total_steps:
            model.save(folder, {"stage": "classify", "started_from": config.model.path})
        summary = _summary(run, training, backbone, predictions, data)
        run.metrics.close({**summary, **model.describe(), "skipped_rows": len(data.skipped)})
        write_report(folder, classification_page(folder))
    print_closing(folder, [_finding(summary)])


def build_model(config: ClassifyConfig, backbone: Backbone, data: LabelledData) -> LabelModel:
    """The classifier that the configuration describes, ready to train.

    Raises:
        ValueError: a template, a word or the tuning does not fit.
    """
    method = config.method
    if isinstance(method, HeadMethod):
        trains_model = method.trains == "model_and_head"
        adapter = _tuned(config, backbone) if trains_model else policy_adapter(backbone)
        policy = CausalPolicy(backbone, adapter=adapter, temperature=1.0)
        return HeadModel(policy, len(config.labels), trains_model=trains_model, seed=config.seed)
    loaded = CausalPolicy(backbone, adapter=policy_adapter(backbone), temperature=1.0)
    prompts = build_prompts(method.prompts, loaded, data.train, config.labels, seed=config.seed)
    adapter = _tuned(config, backbone) if config.epochs > 0 else policy_adapter(backbone)
    policy = CausalPolicy(backbone, adapter=adapter, temperature=1.0)
    return ClozeModel(policy, prompts, method, shown=data.train, seed=config.seed)


def _tuned(config: ClassifyConfig, backbone: Backbone) -> str | None:
    return prepare_policy(backbone, config.model.tuning, seed=config.seed)


def _within(config: ClassifyConfig, model: LabelModel, data: LabelledData, limit: int) -> LabelledData:
    """The texts that the model can read whole: of at most `limit` tokens in every view.

    Raises:
        ValueError: a longer one, unless bad rows are skipped.
    """
    skipped = list(data.skipped)

    def kept(texts: Sequence[LabelledText], field: str) -> list[LabelledText]:
        fitting: list[LabelledText] = []
        for text in texts:
            longest = max(lengths_of([model.encode(text, view) for view in range(model.views)]))
            if longest <= limit:
                fitting.append(text)
                continue
            problem = (
                f"{field}, row {text.name}: {longest} tokens with pattern and answer, {limit} are allowed "
                f"(max_tokens={config.max_tokens}, or the context that the model has left)"
            )
            if config.data.on_bad_row == "error":
                raise ValueError(f"{problem}: shorten it, raise max_tokens, or set data.on_bad_row=skip")
            skipped.append(problem)
        if not fitting:
            raise ValueError(
                f"{field}: no text is left within {limit} tokens (max_tokens={config.max_tokens}); raise it"
            )
        return fitting

    train = kept(data.train, f"data.train={config.data.train}")
    held_out = kept(data.held_out, f"data.eval={config.data.eval}")
    return LabelledData(train, held_out, skipped)


def _train(
    config: ClassifyConfig, run: TrainingRun, training: ClassifierTraining, model: LabelModel, data: LabelledData
) -> Tensor:
    """Steps to the end; returns the label log-probs of the held-out texts."""
    checkpoints = KeptCheckpoints(run.folder, config.checkpoint, training.total_steps)
    first_step = training.steps_done
    while training.steps_done < training.total_steps - 1:
        metrics = _step(training, checkpoints)
        run.metrics.log(training.steps_done, metrics)
        if checkpoints.is_due(training.steps_done):
            checkpoints.save(training.state())
    last = _step(training, checkpoints) if training.steps_done < training.total_steps else {}
    started = time.perf_counter()
    predictions = _predict(config, model, data)
    outcome = outcome_of(predictions, data.held_out)
    if run.folder.last_step != max(training.steps_done, 1):
        last |= {
            "eval/accuracy": outcome.accuracy,
            "eval/accuracy_low": outcome.low,
            "eval/accuracy_high": outcome.high,
        }
        last |= {"eval/label_loss": outcome.loss, "time/eval": time.perf_counter() - started}
        run.metrics.log(max(training.steps_done, 1), last)
    if training.steps_done > first_step:
        checkpoints.save(training.state())
    return predictions


def _step(training: ClassifierTraining, checkpoints: KeptCheckpoints) -> dict[str, float]:
    try:
        return training.step()
    except NonFiniteLossError:
        checkpoints.save(training.state())
        raise


def _predict(config: ClassifyConfig, model: LabelModel, data: LabelledData) -> Tensor:
    ensemble = config.method.ensemble if isinstance(config.method, ClozeMethod) else "log_probs"
    return predict(model, data.held_out, ensemble=ensemble, micro_batch_tokens=config.micro_batch_tokens)


def _prediction_rows(
    predictions: Tensor, texts: Sequence[LabelledText], labels: Sequence[str]
) -> list[dict[str, object]]:
    return [
        {
            "row": int(text.name),
            "label": labels[text.label],
            "predicted": labels[int(row.argmax())],
            "log_probs": [round(value, 5) for value in row.tolist()],
        }
        for text, row in zip(texts, predictions, strict=True)
    ]


def _finding(summary: Mapping[str, Any]) -> str:
    interval = f"95 % interval {summary['low']:.3f} to {summary['high']:.3f}"
    majority = f"always the most frequent label {summary['majority']:.3f}"
    return f"held-out accuracy {summary['accuracy']:.3f} ({interval}; {majority})"


def _summary(
    run: TrainingRun, training: ClassifierTraining, backbone: Backbone, predictions: Tensor, data: LabelledData
) -> dict[str, Any]:
    rows = run.folder.read_metrics()
    outcome = outcome_of(predictions, data.held_out)
    trained = sum(parameter.numel() for _, parameter in training.parameters)
    own = {id(parameter) for parameter in backbone.model.parameters()}
    beside = sum(parameter.numel() for _, parameter in training.parameters if id(parameter) not in own)
    total = sum(parameter.numel() for parameter in backbone.model.parameters()) + beside
    return {
        **asdict(outcome),
        "recalls": outcome.recalls,
        "train_rows": len(data.train),
        "eval_rows": len(data.held_out),
        "steps": training.steps_done,
        "trained_parameters": trained,
        "parameters": total,
        "trained_share": trained / total,
        "seconds": math.fsum(float(str(row.get("time/step", 0.0))) for row in rows),
        "eval_seconds": float(str(rows[-1].get("time/eval", 0.0))),
        "peak_memory_mib": peak_memory_mib(backbone.device),
    }
