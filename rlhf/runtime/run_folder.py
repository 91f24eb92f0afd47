"""The folder of one run: what lies in it, who may write it, how it survives a kill.

    config.yaml       the resolved configuration; its presence says "this folder holds a run"
    environment.json  one entry a session (start or resume): library versions, Python, git commit
    metrics.jsonl     one object a step, `step` ascending
    samples.jsonl     one object a sampled answer
    alerts.jsonl      one object an alert of the health rules
    summary.json      final numbers
    checkpoints/      written by `training_state.py`
    report.html       written by `rlhf.reports`
    wandb_run_id      identity of the W&B run, kept over resumes
    wandb/            W&B's own files
    mlflow_run_id     the same of the MLflow run
    mlruns/           MLflow's own files, where no server has them
    tensorboard/      event files
    .lock             held by the process that writes here

Owns names, text formats and exclusivity. What the numbers mean is `metric_registry.py`'s business.
"""

import fcntl
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, cast

from pydantic import BaseModel

from rlhf.runtime import json_lines
from rlhf.runtime.environment import describe_environment
from rlhf.runtime.saved_config import read_config, refuse_changed_config, write_config

Row = dict[str, object]


class RunFiles:
    """Names of a run folder's files, and reading of those that hold numbers. Needs no lock and writes nothing."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_path = self.path / "config.yaml"
        self.environment_path = self.path / "environment.json"
        self.metrics_path = self.path / "metrics.jsonl"
        self.samples_path = self.path / "samples.jsonl"
        self.alerts_path = self.path / "alerts.jsonl"
        self.summary_path = self.path / "summary.json"
        self.checkpoints_path = self.path / "checkpoints"
        self.report_path = self.path / "report.html"
        self.wandb_run_id_path = self.path / "wandb_run_id"

    def holds_run(self) -> bool:
        """Whether a run was started here, finished or not."""
        traces = (self.config_path, self.metrics_path, self.samples_path, self.summary_path, self.checkpoints_path)
        return any(path.exists() for path in traces)

    def read_config(self) -> Row:
        """The resolved configuration the run was started with."""
        return read_config(self.config_path)

    def read_metrics(self) -> list[Row]:
        """One `{"step": ..., "<metric>": number}` a step, oldest first, non-finite values as floats again."""
        rows = json_lines.read_objects(self.metrics_path)
        return [{key: json_lines.decode_number(value) for key, value in row.items()} for row in rows]

    def read_samples(self) -> list[Row]:
        """The sampled answers, oldest first, each with its `step`."""
        return json_lines.read_objects(self.samples_path)

    def read_alerts(self) -> list[Row]:
        """What the health rules found, oldest first, each with the `step` at which its trouble began."""
        return json_lines.read_objects(self.alerts_path)

    def read_summary(self) -> Row:
        """The final numbers; empty while the run has not ended."""
        if not self.summary_path.exists():
            return {}
        return cast(Row, json.loads(self.summary_path.read_text(encoding="utf-8")))


class RunFolder(RunFiles):
    """A run folder opened for writing by this process; made by `create` or `resume`, never directly."""

    def __init__(self, path: Path, lock: IO[str]) -> None:
        super().__init__(path)
        self._lock = lock
        self._last_step = _last_step(self.metrics_path)

    @classmethod
    def create(cls, path: str | Path, resolved_config: Mapping[str, object]) -> "RunFolder":
        """Starts a run in a new folder, or in one that holds no run yet; other files there are left alone.

        Args:
            path: The folder; made with its parents where missing.
            resolved_config: The whole configuration as plain JSON values (`model_dump(mode="json")`).

        Raises:
            ValueError: the folder holds a run, is in use by another process, or cannot be made.
        """
        files = RunFiles(path)
        refuse_existing_run(path)
        lock = _lock_folder(files.path)
        try:
            # Again under the lock: another process may have started a run between the first look and the lock.
            refuse_existing_run(path)
            _write_session(files, earlier=[])
            write_config(files.config_path, resolved_config)
        except BaseException:
            lock.close()
            raise
        return cls(files.path, lock)

    @classmethod
    def resume(
        cls, path: str | Path, resolved_config: Mapping[str, object], schema: type[BaseModel] | None = None
    ) -> "RunFolder":
        """Opens the folder of an earlier run to continue it; a line that a kill cut off is removed.

        The saved configuration stays as it is. `truncate_after` must follow, with the step of the loaded checkpoint.

        Raises:
            ValueError: no run is there, another process writes it, or the configuration differs
                (`saved_config.refuse_changed_config`).
        """
        files = RunFiles(path)
        if not files.config_path.exists():
            raise ValueError(f"run_dir: '{files.path}' holds no run to resume; drop --resume, or name another run_dir")
        lock = _lock_folder(files.path)
        try:
            refuse_changed_config(files.config_path, resolved_config, schema)
            _write_session(files, earlier=_read_sessions(files))
            _keep_rows(files, lambda _row: True)
        except BaseException:
            lock.close()
            raise
        return cls(files.path, lock)

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets another process write this folder. Nothing is buffered, so nothing is lost without it."""
        self._lock.close()

    @property
    def last_step(self) -> int | None:
        """Step of the newest metrics line; None before the first."""
        return self._last_step

    def append_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds the one metrics line of `step`; it outlives a SIGKILL that follows."""
        last = self._last_step
        assert last is None or step > last, f"step {step} after step {last}: each step has exactly one metrics line"
        json_lines.append_line(self.metrics_path, json_lines.encode({"step": step, **metrics}))
        self._last_step = step

    def append_samples(self, step: int, rows: Sequence[Mapping[str, object]]) -> None:
        """Adds sampled answers, one line each, with `step` in front."""
        if rows:
            lines = [json_lines.encode({"step": step, **row}) for row in rows]
            json_lines.append_line(self.samples_path, "\n".join(lines))

    def append_alert(self, alert: Mapping[str, object]) -> None:
        """Adds what a health rule found; `alert` holds the `step`."""
        json_lines.append_line(self.alerts_path, json_lines.encode(alert))

    def write_summary(self, summary: Mapping[str, object]) -> None:
        """Replaces summary.json in one piece."""
        json_lines.write_atomically(self.summary_path, json_lines.encode(summary, indent=2) + "\n")

    def truncate_after(self, step: int) -> None:
        """Drops what was written about later steps; a run resumed from the checkpoint of `step` writes it anew."""
        _keep_rows(self, lambda row: cast(int, row["step"]) <= step)
        self._last_step = _last_step(self.metrics_path)


def open_run(path: str | Path, config: BaseModel, *, resume: bool) -> RunFolder:
    """Starts the run of a configuration in a folder, or with `resume` opens the one that is there.

    Raises:
        ValueError: as `RunFolder.create` and `RunFolder.resume`.
    """
    resolved = config.model_dump(mode="json")
    if resume:
        return RunFolder.resume(path, resolved, type(config))
    return RunFolder.create(path, resolved)


def refuse_existing_run(path: str | Path) -> None:
    """Refuses what `RunFolder.create` would refuse of a folder that holds a run; for a check before long preparations.

    Raises:
        ValueError: the path is a file, or a folder that holds a run.
    """
    files = RunFiles(path)
    if files.path.exists() and not files.path.is_dir():
        raise ValueError(f"run_dir: '{files.path}' is a file, not a folder; name another run_dir")
    if files.holds_run():
        raise ValueError(
            f"run_dir: '{files.path}' already holds a run; name another run_dir, or continue it with --resume"
        )


def _lock_folder(path: Path) -> IO[str]:
    """The open lock file; closing it, or the end of this process however it comes, gives the folder free.

    A POSIX record lock, not `flock`: it belongs to this process alone, so a forked data-loading worker that outlives a
    killed driver for a few seconds cannot keep the folder from being resumed.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = (path / ".lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise ValueError(f"run_dir: '{path}' cannot be written ({error.strerror}); name another run_dir") from error
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = _read_owner(file)
        file.close()
        raise ValueError(
            f"run_dir: '{path}' is in use by process {owner}; wait for it, stop it, or name another run_dir"
        ) from error
    _write_owner(file)
    return file


def _read_owner(file: IO[str]) -> str:
    file.seek(0)
    return file.read().strip() or "unknown"


def _write_owner(file: IO[str]) -> None:
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()


def _read_sessions(files: RunFiles) -> list[object]:
    if not files.environment_path.exists():
        return []
    return cast(list[object], json.loads(files.environment_path.read_text(encoding="utf-8"))["sessions"])


def _write_session(files: RunFiles, *, earlier: list[object]) -> None:
    sessions = [*earlier, describe_environment()]
    json_lines.write_atomically(files.environment_path, json_lines.encode({"sessions": sessions}, indent=2) + "\n")


def _keep_rows(files: RunFiles, keep: Callable[[Row], bool]) -> None:
    """Rewrites metrics, samples and alerts with the complete lines that `keep` selects."""
    for path in (files.metrics_path, files.samples_path, files.alerts_path):
        if path.exists():
            json_lines.write_objects(path, [row for row in json_lines.read_objects(path) if keep(row)])


def _last_step(metrics_path: Path) -> int | None:
    rows = json_lines.read_objects(metrics_path)
    return cast(int, rows[-1]["step"]) if rows else None
