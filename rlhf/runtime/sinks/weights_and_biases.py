"""A run on Weights & Biases, online or as files for `wandb sync`. The only file that imports wandb.

Owns what W&B is told and what it is not: no key, no command line, no remote's address.
"""

import json
import logging
import os
import threading
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rlhf.runtime.config import TrackingConfig
from rlhf.runtime.environment import describe_environment
from rlhf.runtime.health.rule import Alert
from rlhf.runtime.json_lines import write_atomically
from rlhf.runtime.lineage import LineageItem, inputs_of, output_of
from rlhf.runtime.run_folder import RunFolder
from rlhf.runtime.sinks.sink import Rows, TrackingError

if TYPE_CHECKING:
    import wandb

logger = logging.getLogger(__name__)

WandbMode = Literal["online", "offline", "off"]

STEP_AXIS = "progress/step"
SAMPLE_TABLE = "samples"
_INIT_TIMEOUT_SECONDS = 30.0
_FINISH_TIMEOUT_SECONDS = 60.0
_LINEAGE_TIMEOUT_SECONDS = 120.0
_WANDB_MODES: dict[str, WandbMode] = {
    "online": "online",
    "run": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "off",
}


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


def default_entity() -> str:
    """The user or team that WANDB_API_KEY logs to where none is named.

    Raises:
        TrackingError: W&B cannot be reached or refuses the key.
    """
    import wandb  # noqa: PLC0415 - heavy, and wanted only where something is sent

    try:
        return str(wandb.Api(timeout=int(_INIT_TIMEOUT_SECONDS)).default_entity)
    except wandb.Error as error:
        raise TrackingError(f"W&B: {str(error).splitlines()[0]}; check WANDB_API_KEY and the network") from error


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
        self._folder, self._resolved_config = run_folder.path, resolved_config
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
        self._is_online = mode == "online" and not self._run.offline
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
        try:
            self._run.summary.update(dict(summary))
            if self._is_online and summary and not failed:
                self._log_lineage()
        finally:
            self._run.finish(exit_code=int(failed))
            self._environment.restore()

    def _log_lineage(self) -> None:
        """Tells W&B what the run read and made, by checksum.

        At the end, so that reading large files delays no training, and for a bounded time: W&B waits for its server
        without one.
        """
        worker = threading.Thread(target=log_lineage, args=(self._run, self._resolved_config, self._folder))
        worker.daemon = True
        worker.start()
        worker.join(_LINEAGE_TIMEOUT_SECONDS)
        if worker.is_alive():
            logger.warning("W&B has not taken the run's lineage within %g s; it is left out", _LINEAGE_TIMEOUT_SECONDS)

    def _sample_table(self, fields: list[str]) -> "wandb.Table":
        import wandb  # noqa: PLC0415 - heavy, and not wanted where tracking.wandb=off

        if self._table is None:
            self._table = wandb.Table(columns=["step", *fields], log_mode="INCREMENTAL", allow_mixed_types=True)
        return self._table


def log_lineage(run: "wandb.Run", resolved_config: Mapping[str, object], run_folder: Path) -> None:
    """Declares the run's inputs and its model as artifacts that hold checksums alone.

    Equal checksums are one version of an artifact, whoever declares it: so the model of one run is the input of another
    in W&B's graph. Nothing is uploaded but the list of checksums; a failure is logged, since the run is complete.
    """
    try:
        for item in inputs_of(resolved_config):
            run.use_artifact(_artifact(item))
        made = output_of(run_folder)
        if made is not None:
            run.log_artifact(_artifact(made))
    except Exception as error:  # noqa: BLE001 - the boundary to W&B, in a thread of its own; logged
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        logger.warning("W&B does not take the run's lineage (%s); it is left out", reason)


def _artifact(item: LineageItem) -> "wandb.Artifact":
    import wandb  # noqa: PLC0415 - heavy, and not wanted where tracking.wandb=off

    artifact = wandb.Artifact(item.name, type=item.kind)
    with artifact.new_file("checksums.json", encoding="utf-8") as file:
        json.dump(item.checksums, file, indent=1, sort_keys=True)
    return artifact


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
    """The id kept in the run folder, made on first use; of a sweep's run, the one that its agent gave it."""
    if not path.exists():
        given = os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
        write_atomically(path, (given or uuid.uuid4().hex[:12]) + "\n")
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
