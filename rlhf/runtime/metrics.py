"""From a training loop to every place that shows its numbers.

Owns conversion (one device transfer a step), the refusal of undocumented keys, the fan-out to sinks, which sinks a
configuration asks for, and when the health rules look. The sinks are in `sinks/`, the terminal's in `terminal.py`, the
keys in `metric_registry.py`, the rules in `health/`.
"""

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import cast

import torch

from rlhf.runtime.config import TrackingConfig
from rlhf.runtime.health.monitor import HEALTH_SUMMARY, HealthMonitor
from rlhf.runtime.health.rule import Alert
from rlhf.runtime.metric_registry import require_documented
from rlhf.runtime.run_folder import RunFolder
from rlhf.runtime.sinks.guard import GuardedSink
from rlhf.runtime.sinks.jsonl import JsonlSink
from rlhf.runtime.sinks.mlflow import MlflowSink
from rlhf.runtime.sinks.sink import MetricSink, Rows
from rlhf.runtime.sinks.tensorboard import TensorboardSink
from rlhf.runtime.sinks.weights_and_biases import WandbSink, resolve_wandb_mode
from rlhf.runtime.terminal import terminal_sink

Number = float | int | torch.Tensor

FAILURES_SUMMARY = "tracking_failures"
"""Key in summary.json of the failed calls of each sink that had any."""


class MetricLogger:
    """Sends each step's numbers, and what the health rules find in them, to every sink.

    As a context manager it closes the sinks whatever happens.

    Args:
        sinks: Served in order; put the one that must not lose anything first.
        health: Looks at every step, and adds its verdict to the summary as `health`; None where nothing is trained.
    """

    def __init__(self, sinks: Sequence[MetricSink], *, health: HealthMonitor | None = None) -> None:
        self._sinks = list(sinks)
        self._health = health

    def __enter__(self) -> "MetricLogger":
        return self

    def __exit__(self, exception_type: type[BaseException] | None, *_details: object) -> None:
        self.close({}, failed=exception_type is not None)

    def log(self, step: int, metrics: Mapping[str, Number]) -> None:
        """Logs the numbers of `step`, once a step, steps ascending; one-element tensors cost one transfer a device.

        Raises:
            ValueError: a key is not documented, or a tensor has more than one element.
        """
        require_documented(metrics)
        numbers = to_floats(metrics)
        for sink in self._sinks:
            sink.log(step, numbers)
        for alert in [] if self._health is None else self._health.observe(step, numbers):
            self.log_alert(alert)

    def log_alert(self, alert: Alert) -> None:
        """Tells every sink of an alert: one of the health rules', or one of an error that ends the run."""
        for sink in self._sinks:
            sink.log_alert(alert)

    def rewind(self, rows: Iterable[Mapping[str, object]]) -> None:
        """Lets the health rules forget what they saw after the `rows` that stay; steps behind them come again."""
        if self._health is not None:
            self._health.restart(rows)

    def log_samples(self, step: int, rows: Rows) -> None:
        """Logs answers to the fixed prompts; `rows` hold plain values and the same fields every time."""
        for sink in self._sinks:
            sink.log_samples(step, rows)

    def close(self, summary: Mapping[str, object], *, failed: bool = False) -> None:
        """Hands over the final numbers and closes every sink; a second call does nothing."""
        sinks, self._sinks = self._sinks, []
        if summary and self._health is not None:
            summary = {**summary, HEALTH_SUMMARY: self._health.summary()}
        failures = {sink.name: sink.failures for sink in sinks if isinstance(sink, GuardedSink) and sink.failures}
        if summary and failures:
            summary = {**summary, FAILURES_SUMMARY: failures}
        with ExitStack() as stack:
            # Last in, first out; and one that raises, a full disk under the run folder, keeps none from being closed.
            for sink in reversed(sinks):
                stack.callback(sink.close, summary, failed=failed)


def open_metric_logger(
    run_folder: RunFolder,
    tracking: TrackingConfig,
    resolved_config: Mapping[str, object],
    *,
    stage: str,
    total_steps: int,
    health: HealthMonitor | None = None,
) -> MetricLogger:
    """The logger of a stage: metrics.jsonl first, then the terminal, then the trackers that `tracking` names.

    `health` is as in `MetricLogger`; of a resumed run it has seen the earlier rows. All but metrics.jsonl are guarded:
    one that fails later is counted and does not end the run.

    Raises:
        ValueError: W&B should be online and there is no WANDB_API_KEY.
        TrackingError: a tracker that was asked for cannot be reached now.
    """
    # Before the terminal's, which may take over the screen.
    trackers = _open_trackers(run_folder, tracking, resolved_config, stage)
    terminal = GuardedSink("the terminal", terminal_sink(stage, total_steps, live=tracking.live))
    return MetricLogger([JsonlSink(run_folder), terminal, *trackers], health=health)


def _open_trackers(
    run_folder: RunFolder, tracking: TrackingConfig, resolved_config: Mapping[str, object], stage: str
) -> list[GuardedSink]:
    trackers: list[GuardedSink] = []
    mode = resolve_wandb_mode(tracking.wandb, os.environ)
    if tracking.tensorboard:
        trackers.append(GuardedSink("TensorBoard", TensorboardSink(run_folder)))
    if tracking.mlflow:
        trackers.append(GuardedSink("MLflow", MlflowSink(run_folder, tracking, resolved_config, stage)))
    if mode != "off":
        must_be_online = tracking.wandb == "online"
        wandb = WandbSink(run_folder, tracking, resolved_config, stage, mode, must_be_online=must_be_online)
        trackers.append(GuardedSink("W&B", wandb))
    return trackers


def to_floats(metrics: Mapping[str, Number]) -> dict[str, float]:
    """The same metrics as Python floats; all one-element tensors of a device come over in one transfer.

    Raises:
        ValueError: a tensor has more than one element.
    """
    floats = {key: value if isinstance(value, torch.Tensor) else float(value) for key, value in metrics.items()}
    by_device: dict[torch.device, dict[str, torch.Tensor]] = defaultdict(dict)
    for key, value in floats.items():
        if isinstance(value, torch.Tensor):
            by_device[value.device][key] = _scalar(key, value)
    for tensors in by_device.values():
        values = torch.stack(list(tensors.values())).cpu().tolist()
        floats.update(zip(tensors, values, strict=True))
    return cast(dict[str, float], floats)


def _scalar(key: str, value: torch.Tensor) -> torch.Tensor:
    if value.numel() != 1:
        raise ValueError(
            f"metric '{key}' has shape {tuple(value.shape)}; log one number: reduce it with a documented mean"
        )
    # MPS has no float64; elsewhere it keeps counts above 2^24 exact.
    return value.detach().reshape(()).to(torch.float32 if value.device.type == "mps" else torch.float64)
