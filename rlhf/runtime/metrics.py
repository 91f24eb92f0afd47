"""From a training loop to metrics.jsonl, the terminal and Weights & Biases. The only file that imports wandb.

Owns conversion (one device transfer a step), the refusal of undocumented keys, the fan-out to sinks, and when the
health rules look. The keys stand in `metric_registry.py`, the files in `run_folder.py`, the terminal's columns in
`console.py`, the rules in `health/`.
"""

import logging
import os
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, cast

import torch

from rlhf.runtime.config import TrackingConfig
from rlhf.runtime.console import console_sink
from rlhf.runtime.environment import describe_environment
from rlhf.runtime.health.monitor import HEALTH_SUMMARY, HealthMonitor
from rlhf.runtime.health.rule import Alert
from rlhf.runtime.json_lines import write_atomically
from rlhf.runtime.metric_registry import require_documented
from rlhf.runtime.run_folder import RunFolder

if TYPE_CHECKING:
    import wandb

logger = logging.getLogger(__name__)

Number = float | int | torch.Tensor
Rows = Sequence[Mapping[str, object]]
WandbMode = Literal["online", "offline", "off"]

STEP_AXIS = "progress/step"
SAMPLE_TABLE = "samples"
_INIT_TIMEOUT_SECONDS = 30.0
_FINISH_TIMEOUT_SECONDS = 60.0
_WANDB_MODES: dict[str, WandbMode] = {
    "online": "online",
    "run": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "off",
}


class TrackingError(RuntimeError):
    """W&B was asked for and cannot be reached."""


class MetricSink(Protocol):
    """One place that metrics go to."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes the numbers of one step."""
        ...

    def log_samples(self, step: int, rows: Rows) -> None:
        """Takes answers sampled at one step, with the same fields every time."""
        ...

    def log_alert(self, alert: Alert) -> None:
        """Takes what a health rule found."""
        ...

    def close(self, summary: Mapping[str, object], *, failed: bool) -> None:
        """Takes the final numbers, empty where a run ended early, and lets go of resources."""
        ...


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

    def log_samples(self, step: int, rows: Rows) -> None:
        """Logs answers to the fixed prompts; `rows` hold plain values and the same fields every time."""
        for sink in self._sinks:
            sink.log_samples(step, rows)

    def close(self, summary: Mapping[str, object], *, failed: bool = False) -> None:
        """Hands over the final numbers and closes every sink; a second call does nothing."""
        sinks, self._sinks = self._sinks, []
        if summary and self._health is not None:
            summary = {**summary, HEALTH_SUMMARY: self._health.summary()}
        for sink in sinks:
            sink.close(summary, failed=failed)


def open_metric_logger(
    run_folder: RunFolder,
    tracking: TrackingConfig,
    resolved_config: Mapping[str, object],
    *,
    stage: str,
    total_steps: int,
    health: HealthMonitor | None = None,
) -> MetricLogger:
    """The logger of a stage: metrics.jsonl first, then the terminal, then W&B unless it is off.

    `health` is as in `MetricLogger`; of a resumed run it has seen the earlier rows.

    Raises:
        ValueError: W&B should be online and there is no WANDB_API_KEY.
        TrackingError: `tracking.wandb=online` and W&B cannot be reached.
    """
    sinks: list[MetricSink] = [JsonlSink(run_folder), console_sink(stage, total_steps)]
    mode = resolve_wandb_mode(tracking.wandb, os.environ)
    if mode != "off":
        must_be_online = tracking.wandb == "online"
        sinks.append(WandbSink(run_folder, tracking, resolved_config, stage, mode, must_be_online=must_be_online))
    return MetricLogger(sinks, health=health)


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


class JsonlSink:
    """metrics.jsonl, samples.jsonl, alerts.jsonl and summary.json of the run folder."""

    def __init__(self, run_folder: RunFolder) -> None:
        self._run_folder = run_folder

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends the step's line."""
        self._run_folder.append_metrics(step, metrics)

    def log_samples(self, step: int, rows: Rows) -> None:
        """Appends one line a sample."""
        self._run_folder.append_samples(step, rows)

    def log_alert(self, alert: Alert) -> None:
        """Appends the alert's line."""
        self._run_folder.append_alert(alert.as_row())

    def close(self, summary: Mapping[str, object], *, failed: bool) -> None:
        """Writes summary.json; a failed or interrupted run gets none, so its presence means the end was reached."""
        if summary and not failed:
            self._run_folder.write_summary(summary)


def resolve_wandb_mode(
    choice: Literal["auto", "online", "offline", "off"], environment: Mapping[str, str]
) -> WandbMode:
    """What `tracking.wandb` means here: `auto` obeys WANDB_MODE, else is online exactly where WANDB_API_KEY is set.

    Raises:
        ValueError: online without WANDB_API_KEY, or a WANDB_MODE that W&B does not know.
    """
    wanted = environment.get("WANDB_MODE") if choice == "auto" else choice
    has_key = bool(environment.get("WANDB_API_KEY"))
    if not wanted:
        return "online" if has_key else "offline"
    mode = "off" if wanted == "off" else _WANDB_MODES.get(wanted)
    if mode is None:
        raise ValueError(f"WANDB_MODE: '{wanted}' is none of {', '.join(_WANDB_MODES)}; correct or unset it")
    if mode == "online" and not has_key:
        raise ValueError(
            "tracking.wandb: online needs WANDB_API_KEY in the environment, which is not set; "
            "set it, or choose tracking.wandb=offline or off"
        )
    return mode


class WandbSink:
    """A W&B run whose files lie in the run folder and whose id lives there too, so that a resumed job continues it.

    Steps run on our own axis, `progress/step`: W&B's counter must never go back, ours does when a run resumes from a
    checkpoint. An online run then shows the repeated steps twice. An offline run cannot see its earlier part; both
    parts have the same id, for `wandb sync` to join. The sample table is append-only; W&B shows its newest 100 parts.

    Args:
        run_folder: Holds `wandb_run_id` and `wandb/`.
        tracking: Project, name and tags.
        resolved_config: Shown as the run's config, with the environment beside it.
        stage: Job type and a tag of the run.
        mode: Whether to send, or only to write.
        must_be_online: With `mode="online"`: False falls back to offline where W&B cannot be reached, with a warning.

    Raises:
        TrackingError: `must_be_online` and W&B cannot be reached or refuses the key.
    """

    def __init__(
        self,
        run_folder: RunFolder,
        tracking: TrackingConfig,
        resolved_config: Mapping[str, object],
        stage: str,
        mode: Literal["online", "offline"],
        *,
        must_be_online: bool = False,
    ) -> None:
        self._environment = _WandbEnvironment(run_folder.path / "wandb")
        self._table: wandb.Table | None = None
        arguments = {
            "project": tracking.project,
            "name": tracking.name or run_folder.path.resolve().name,
            "tags": [stage, *tracking.tags],
            "job_type": stage,
            "config": {**resolved_config, "environment": describe_environment()},
            "id": _run_id(run_folder.wandb_run_id_path),
            "dir": str(run_folder.path.resolve()),
        }
        try:
            self._run = _start_run(arguments, mode, must_be_online=must_be_online)
        except TrackingError:
            self._environment.restore()
            raise
        self._run.define_metric(STEP_AXIS, hidden=True)
        self._run.define_metric("*", step_metric=STEP_AXIS)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Sends the step's numbers."""
        self._run.log({**metrics, STEP_AXIS: step})

    def log_samples(self, step: int, rows: Rows) -> None:
        """Appends rows to the sample table; only the new ones are sent.

        Raises:
            ValueError: a row has other fields than the first one had.
        """
        if not rows:
            return
        table = self._sample_table(list(rows[0]))
        for row in rows:
            if ["step", *row] != table.columns:
                raise ValueError(
                    f"sample fields are {list(row)}, the table has {table.columns[1:]}; keep them the same"
                )
            table.add_data(step, *row.values())
        self._run.log({SAMPLE_TABLE: table, STEP_AXIS: step})

    def log_alert(self, alert: Alert) -> None:
        """Sends a W&B alert, by mail or Slack as people have set it up there; of each rule at most one a minute."""
        level = "ERROR" if alert.severity == "error" else "WARN"
        text = f"Step {alert.step}: {alert.finding}.\n\n{alert.cause}\n\n{alert.remedy}"
        self._run.alert(title=alert.rule, text=text, level=level)

    def close(self, summary: Mapping[str, object], *, failed: bool) -> None:
        """Sends the final numbers and ends the run, as crashed where it failed; waits a bounded time for uploads."""
        self._run.summary.update(dict(summary))
        self._run.finish(exit_code=int(failed))
        self._environment.restore()

    def _sample_table(self, fields: list[str]) -> "wandb.Table":
        import wandb  # noqa: PLC0415 - heavy, and not wanted where tracking.wandb=off

        if self._table is None:
            self._table = wandb.Table(columns=["step", *fields], log_mode="INCREMENTAL", allow_mixed_types=True)
        return self._table


class _WandbEnvironment:
    """Environment variables that W&B has no setting for: quiet, no error reports, staging inside the run folder."""

    def __init__(self, folder: Path) -> None:
        wanted = {
            "WANDB_SILENT": "true",
            "WANDB_ERROR_REPORTING": "false",
            "WANDB_DATA_DIR": str(folder.resolve() / "data"),
            "WANDB_CACHE_DIR": str(folder.resolve() / "cache"),
        }
        self._added = {name: value for name, value in wanted.items() if name not in os.environ}
        os.environ.update(self._added)

    def restore(self) -> None:
        for name in self._added:
            os.environ.pop(name, None)


def _run_id(path: Path) -> str:
    """The id kept in the run folder, made on first use."""
    if not path.exists():
        write_atomically(path, uuid.uuid4().hex[:12] + "\n")
    return path.read_text(encoding="utf-8").strip()


def _start_run(
    arguments: dict[str, object], mode: Literal["online", "offline"], *, must_be_online: bool
) -> "wandb.Run":
    import wandb  # noqa: PLC0415 - heavy, and not wanted where tracking.wandb=off

    settings = wandb.Settings(
        silent=True,
        console="off",
        # We pass versions and commit ourselves: a remote's URL or a command line may hold a token.
        disable_git=True,
        disable_code=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
        init_timeout=_INIT_TIMEOUT_SECONDS,
        finish_timeout=_FINISH_TIMEOUT_SECONDS,
    )
    try:
        return wandb.init(**arguments, mode=mode, resume="allow", settings=settings)  # pyright: ignore[reportArgumentType]
    except wandb.Error as error:
        reason = str(error).splitlines()[0]
        if mode == "offline" or must_be_online:
            raise TrackingError(
                f"W&B: {reason}; check WANDB_API_KEY and the network, or set tracking.wandb=offline"
            ) from error
        logger.warning(
            "W&B cannot be reached (%s); this run is tracked offline, send it later with `wandb sync`", reason
        )
        # The failed attempt still owns the run id inside W&B's service; a new service frees it.
        wandb.teardown(exit_code=0)
        return _start_run(arguments, "offline", must_be_online=False)
