"""The display of a chain of stages: one line a stage, a bar that moves on a terminal, plain lines elsewhere.

Owns no order and no numbers.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from rlhf.runtime.console import CONSOLE_COLUMNS, alert_text
from rlhf.runtime.health.rule import Alert
from rlhf.runtime.metric_registry import format_value
from rlhf.runtime.terminal import terminal_sinks_from


class StageProgress:
    """A context in which the stages' own console lines go into the display.

    Args:
        titles: What each stage is called, by name, in the order they run.
    """

    def __init__(self, titles: Mapping[str, str]) -> None:
        self._titles = titles
        self._console = Console(highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", style="dim"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        width = max(len(title) for title in titles.values())
        self._tasks: dict[str, TaskID] = {
            name: self._progress.add_task(f"{title:<{width}}", total=None, start=False, note="")
            for name, title in titles.items()
        }
        self._current = ""

    def __enter__(self) -> Self:
        self._progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.__exit__(kind, value, traceback)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times one stage; its metrics move the bar."""
        self._current = name
        task = self._tasks[name]
        self._progress.start_task(task)
        start = time.perf_counter()
        with terminal_sinks_from(lambda stage, total_steps: _DisplaySink(self._progress, task, stage, total_steps)):
            yield
        self._finish(task, name, time.perf_counter() - start)

    def skip(self, name: str, seconds: float) -> None:
        """Shows a stage of an earlier start as done."""
        self._finish(self._tasks[name], name, seconds, " (earlier)")

    def _finish(self, task: TaskID, name: str, seconds: float, remark: str = "") -> None:
        self._progress.update(task, total=1, completed=1)
        self._progress.stop_task(task)
        if not self._console.is_terminal:
            self._console.print(f"{self._titles[name]}: {seconds:.1f} s{remark}")


class _DisplaySink:
    """A metric sink that moves a bar and shows the stage's numbers beside it."""

    def __init__(self, progress: Progress, task: TaskID, stage: str, total_steps: int) -> None:
        self._progress, self._task, self._stage = progress, task, stage
        self._columns = CONSOLE_COLUMNS[stage][:4]
        progress.update(task, total=total_steps)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Moves the bar to `step`."""
        shown = [f"{label} {format_value(metrics[key])}" for key, label in self._columns if key in metrics]
        self._progress.update(self._task, completed=step, note="  ".join(shown))

    def log_samples(self, step: int, rows: Sequence[Mapping[str, object]]) -> None:
        """Shows nothing: the samples are in the report."""

    def log_alert(self, alert: Alert) -> None:
        """Prints one line above the bars."""
        self._progress.console.print(alert_text(self._stage, alert), soft_wrap=True)

    def close(self, summary: Mapping[str, object], *, failed: bool) -> None:
        """Shows nothing: the stage has the last word."""
