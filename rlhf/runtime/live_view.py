"""What a training stage looks like while it runs: a view that stays in place at the bottom of a terminal.

    ╭ ppo ─────────────────────────────────────────────────────────────────────────╮
    │ step 37/200  ━━━━━━╸━━━━━━━━━━━━━━━━━━━━━━━━   18 %   2:10 so far, 9:41 to go │
    │ score           0.5231  ▁▁▂▂▃▄▅▅▆█    clipped      0.0413  ▂▂▃▂▁▂            │
    ╰──────────────────────────────────────────────────────────────────────────────╯

Owns layout and timing of the redraw. What is printed or logged meanwhile appears above it and stays. Nothing here is a
record: metrics.jsonl is.
"""

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rlhf.runtime.console import alert_text
from rlhf.runtime.health.rule import Alert
from rlhf.runtime.metric_registry import format_value

_SPEED = (("perf/tokens_per_s", "tokens/s"), ("perf/peak_memory_mib", "memory MiB"))
# Per training stage, what a person watches: metric and its short label, read in rows of two.
LIVE_ROWS: dict[str, tuple[tuple[str, str], ...]] = {
    "pretrain": (("loss/train", "loss"), ("eval/perplexity", "held-out ppl"), *_SPEED, ("progress/lr", "lr")),
    "text-to-text": (("loss/train", "loss"), ("eval/perplexity", "held-out ppl"), *_SPEED, ("progress/lr", "lr")),
    "sft": (("loss/train", "loss"), ("eval/loss", "held-out loss"), *_SPEED, ("progress/lr", "lr")),
    "distill": (
        ("loss/train", "loss"),
        ("eval/teacher_kl", "held-out kl"),
        ("eval/score_error", "score error"),
        ("progress/lr", "lr"),
    ),
    "classify": (("loss/train", "loss"), ("eval/accuracy", "held-out acc"), *_SPEED[1:], ("progress/lr", "lr")),
    "reward": (
        ("rm/loss", "loss"),
        ("rm/eval_loss", "held-out loss"),
        ("rm/accuracy", "accuracy"),
        ("rm/eval_accuracy", "held-out acc"),
        ("rm/margin", "margin"),
        ("perf/peak_memory_mib", "memory MiB"),
    ),
    "ppo": (
        ("objective/scores", "score"),
        ("objective/kl", "kl"),
        ("objective/rlhf_reward", "reward"),
        ("rollout/response_length_mean", "length"),
        ("policy/entropy", "entropy"),
        ("policy/clipfrac", "clipped"),
        ("critic/explained_var", "critic"),
        ("rollout/eos_rate", "ended"),
        ("perf/samples_per_s", "samples/s"),
        ("perf/peak_memory_mib", "memory MiB"),
    ),
}
_BARS = "▁▂▃▄▅▆▇█"
_LABEL_WIDTH, _VALUE_WIDTH, _GAP = 13, 9, 2
_FRAME_WIDTH = 4
_REMEMBERED_STEPS = 32
_SHOWN_ALERTS = 3
_TIMED_STEPS = 20
_WIDTH = 96
_REDRAWS_PER_SECOND = 2

Points = tuple[float, ...]


class LiveSink:
    """A view of a stage's newest numbers with their recent course, its progress and its newest alerts.

    Every line ever shown above it stays in the terminal's history; of the view itself, its last state.

    Args:
        stage: A key of `LIVE_ROWS`.
        total_steps: Last step of the run.
        console: Where to draw; None is standard output.
        clock: Seconds, rising.
    """

    def __init__(
        self,
        stage: str,
        total_steps: int,
        *,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stage, self._total_steps, self._clock = stage, total_steps, clock
        # Replaced as a whole, never changed: the redraw reads them from another thread.
        self._points: dict[str, Points] = {}
        self._durations: Points = ()
        self._alerts: tuple[Alert, ...] = ()
        self._step = 0
        self._start = self._last_time = clock()
        self._console = console or Console(highlight=False)
        self._live = Live(console=self._console, get_renderable=self._view, refresh_per_second=_REDRAWS_PER_SECOND)
        streams = {sys.stdout, sys.stderr}
        self._live.start()
        # Since the start, sys.stdout and sys.stderr write above the view; handlers made before hold the old ones.
        self._redirected = [(handler, handler.stream) for handler in _stream_handlers() if handler.stream in streams]
        for handler, _ in self._redirected:
            handler.setStream(sys.stderr)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Shows the numbers of one step."""
        now = self._clock()
        self._durations = (*self._durations, now - self._last_time)[-_TIMED_STEPS:]
        self._last_time, self._step = now, step
        shown = {key for key, _ in LIVE_ROWS[self._stage]} & metrics.keys()
        added = {key: (*self._points.get(key, ()), metrics[key])[-_REMEMBERED_STEPS:] for key in shown}
        self._points = {**self._points, **added}

    def log_samples(self, step: int, rows: Sequence[Mapping[str, object]]) -> None:
        """Shows nothing: samples are read in samples.jsonl, the report or W&B."""

    def log_alert(self, alert: Alert) -> None:
        """Prints the alert above the view, with what to do, and keeps its finding in the view while it is new."""
        self._console.print(alert_text(self._stage, alert), soft_wrap=True)
        self._alerts = (*self._alerts, alert)[-_SHOWN_ALERTS:]

    def close(self, summary: Mapping[str, object], *, failed: bool) -> None:  # noqa: ARG002 - every sink's signature
        """Leaves the last view where it is, and gives the streams back."""
        for handler, stream in self._redirected:
            handler.setStream(stream)
        self._live.stop()

    def _view(self) -> RenderableType:
        width = min(_WIDTH, self._console.width)
        content = Group(self._progress(), self._numbers(width), *map(_alert_line, self._alerts))
        return Panel(content, title=Text(self._stage, style="bold"), title_align="left", width=width)

    def _progress(self) -> RenderableType:
        line = Table.grid(padding=(0, 2))
        line.add_column(no_wrap=True)
        line.add_column(ratio=1)
        line.add_column(no_wrap=True)
        share = f"{100 * self._step / self._total_steps:3.0f} %"
        bar = ProgressBar(total=self._total_steps, completed=self._step)
        line.add_row(f"step {self._step}/{self._total_steps}", bar, f"{share}   {self._time()}")
        line.expand = True
        return line

    def _time(self) -> str:
        so_far = f"{_clock_text(self._clock() - self._start)} so far"
        if not self._durations:
            return f"{so_far}, first step under way"
        # The median: steps that evaluate or save take longer, and the first one warms up.
        left = median(self._durations) * (self._total_steps - self._step) - (self._clock() - self._last_time)
        return f"{so_far}, {_clock_text(max(left, 0.0))} to go" if self._step < self._total_steps else so_far

    def _numbers(self, width: int) -> RenderableType:
        # What a narrow terminal takes, it takes from the sparklines, never from a number.
        fixed = _FRAME_WIDTH + 2 * (_LABEL_WIDTH + _VALUE_WIDTH) + 5 * _GAP
        steps = max((width - fixed) // 2, 1)
        cells = [
            (Text(label, style="dim"), _value(points), Text(sparkline(points[-steps:]), style="cyan"))
            for key, label in LIVE_ROWS[self._stage]
            for points in [self._points.get(key, ())]
        ]
        grid = Table.grid(padding=(0, _GAP))
        for _ in range(2):
            grid.add_column(width=_LABEL_WIDTH, no_wrap=True)
            grid.add_column(width=_VALUE_WIDTH, justify="right", no_wrap=True)
            grid.add_column(width=steps, no_wrap=True)
        for start in range(0, len(cells), 2):
            grid.add_row(*[part for cell in cells[start : start + 2] for part in cell])
        return grid


def sparkline(points: Sequence[float]) -> str:
    """One bar a value between the lowest and the highest of them; a value that is not finite is an exclamation mark."""
    finite = [value for value in points if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)

    def bar(value: float) -> str:
        if not math.isfinite(value):
            return "!"
        # Halved, so that the difference of two huge numbers is finite. A constant lies in the middle.
        share = (value / 2 - low / 2) / (high / 2 - low / 2) if high > low else 0.5
        return _BARS[min(int(share * len(_BARS)), len(_BARS) - 1)]

    return "".join(map(bar, points))


def _value(points: Points) -> Text:
    if not points:
        return Text("-", style="dim")
    return Text(format_value(points[-1]), style="bold" if math.isfinite(points[-1]) else "bold red")


def _alert_line(alert: Alert) -> Text:
    color = "bold red" if alert.severity == "error" else "bold yellow"
    line = Text.assemble((f"! step {alert.step} {alert.rule}", color), f": {alert.finding}")
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


def _clock_text(seconds: float) -> str:
    """`9:41`, `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _stream_handlers() -> Iterator[logging.StreamHandler]:
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    for handler in {handler for one in loggers if isinstance(one, logging.Logger) for handler in one.handlers}:
        # Subclasses write to files.
        if type(handler) is logging.StreamHandler:
            yield handler
