import io
import logging
import math
import os
import pty
import select
import subprocess
import sys
import time
from typing import Any

import pytest
from rich.console import Console

from rlhf.runtime.console import ConsoleSink
from rlhf.runtime.health.rule import Alert
from rlhf.runtime.live_view import LIVE_ROWS, LiveSink, sparkline
from rlhf.runtime.metric_registry import METRICS
from rlhf.runtime.terminal import can_redraw, terminal_sink, terminal_sinks_from

RUNAWAY = Alert(12, "kl_runaway", "error", "objective/kl is 31", "Too far.", "Lower `optimizer.learning_rate`.")
TERMINAL = {"TERM": "xterm-256color"}


class Terminal(io.StringIO):
    """A stream that says it is a terminal, of an encoding."""

    def __init__(self, encoding: str = "utf-8", *, is_terminal: bool = True) -> None:
        super().__init__()
        self._encoding, self._is_terminal = encoding, is_terminal

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride] - a text stream's is read-only
        return self._encoding

    def isatty(self) -> bool:
        return self._is_terminal


class Watched:
    """A live view on a terminal of a width, by a clock of our own; `shown()` is what it shows now."""

    def __init__(self, stage: str = "ppo", total_steps: int = 20, width: int = 100) -> None:
        self.now = 0.0
        self.output = io.StringIO()
        self.console = Console(file=self.output, force_terminal=True, width=width, highlight=False)
        self.sink = LiveSink(stage, total_steps, console=self.console, clock=lambda: self.now)

    def shown(self) -> list[str]:
        plain = Console(file=io.StringIO(), width=self.console.width, color_system=None)
        plain.print(self.sink._view())
        output: Any = plain.file
        return output.getvalue().splitlines()


@pytest.fixture
def watched() -> Any:
    view = Watched()
    yield view
    view.sink.close({}, failed=False)


def test_the_view_shows_step_time_left_numbers_and_their_course(watched: Watched) -> None:
    for step, kl in enumerate([1.0, 2.0, 8.0], start=1):
        watched.now += 30.0
        watched.sink.log(step, {"objective/kl": kl, "objective/scores": 0.5231, "loss/policy": 7.7})
    watched.now += 10.0
    text = "\n".join(watched.shown())
    assert "step 3/20" in text
    assert " 15 %" in text
    # 17 steps of 30 s are left, less the 10 s that the fourth has taken.
    assert "1:40 so far, 8:20 to go" in text
    (line,) = [line for line in watched.shown() if " kl " in line]
    assert "8  ▁▂█" in line
    assert "score             0.5231" in line
    assert "7.7" not in text


def test_one_slow_step_does_not_move_the_time_that_is_left(watched: Watched) -> None:
    for step, seconds in enumerate([60, 2, 2, 2, 2, 300, 2], start=1):
        watched.now += seconds
        watched.sink.log(step, {})
    assert "0:26 to go" in "\n".join(watched.shown())


def test_a_resumed_run_goes_on_at_its_step(watched: Watched) -> None:
    watched.now = 4.0
    watched.sink.log(15, {})
    assert "0:04 so far, 0:20 to go" in "\n".join(watched.shown())


@pytest.mark.parametrize("width", [60, 72, 100, 200])
def test_no_number_is_cut_on_a_narrow_terminal(width: int) -> None:
    view = Watched(width=width)
    numbers = dict.fromkeys((key for key, _ in LIVE_ROWS["ppo"]), -1.2345e-05)
    view.sink.log(1, numbers)
    view.sink.close({}, failed=False)
    lines = view.shown()
    assert "\n".join(lines).count("-1.23e-5") == len(numbers)
    assert {len(line) for line in lines} == {min(width, 96)}


def test_an_alert_is_printed_above_with_its_remedy_and_stays_in_the_view(watched: Watched) -> None:
    watched.sink.log_alert(RUNAWAY)
    assert "Lower `optimizer.learning_rate`." in watched.output.getvalue()
    assert any("! step 12 kl_runaway: objective/kl is 31" in line for line in watched.shown())


def test_only_the_newest_alerts_stay(watched: Watched) -> None:
    for step in range(5):
        watched.sink.log_alert(Alert(step, f"rule_{step}", "warning", "found", "cause", "remedy"))
    assert [line.split()[4] for line in watched.shown() if "! step" in line] == ["rule_2:", "rule_3:", "rule_4:"]


def test_what_is_printed_and_logged_meanwhile_goes_through_the_view_and_the_streams_come_back() -> None:
    handler = logging.StreamHandler(sys.stderr)
    logger = logging.getLogger("tests.live_view")
    logger.addHandler(handler)
    before = sys.stdout, sys.stderr, handler.stream
    view = Watched()
    try:
        print("printed by a library")  # noqa: T201 - what libraries do
        logger.warning("logged by a library")
    finally:
        view.sink.close({}, failed=True)
        logger.removeHandler(handler)
    assert "printed by a library" in view.output.getvalue()
    assert "logged by a library" in view.output.getvalue()
    assert (sys.stdout, sys.stderr, handler.stream) == before


def test_a_sparkline_spans_lowest_to_highest_and_marks_what_is_not_finite() -> None:
    assert sparkline([]) == ""
    assert sparkline([1.0, 1.0]) == "▅▅"
    assert sparkline([0.0, 1.0, math.nan, 8.0, math.inf]) == "▁▂!█!"
    assert sparkline([-1.5e308, 1.5e308]) == "▁█"


def test_every_number_of_the_view_is_documented_and_its_label_fits() -> None:
    for rows in LIVE_ROWS.values():
        assert {key for key, _ in rows} <= METRICS.keys()
        assert max(len(label) for _, label in rows) <= 13


@pytest.mark.parametrize("environment", [TERMINAL, TERMINAL | {"NO_COLOR": "", "CI": ""}], ids=["plain", "empty"])
def test_a_terminal_is_redrawn(environment: dict[str, str]) -> None:
    # An empty NO_COLOR is none (no-color.org).
    assert can_redraw(Terminal(), environment)


@pytest.mark.parametrize(
    ("output", "environment"),
    [
        (Terminal(is_terminal=False), TERMINAL),
        (Terminal("ascii"), TERMINAL),
        (Terminal(), {"TERM": "dumb"}),
        (Terminal(), {}),
        (Terminal(), TERMINAL | {"NO_COLOR": "1"}),
        (Terminal(), TERMINAL | {"CI": "true"}),
    ],
    ids=["a file", "ascii", "dumb", "no TERM", "NO_COLOR", "CI"],
)
def test_what_is_no_terminal_or_whose_owner_wants_plain_text_gets_lines(
    output: Terminal, environment: dict[str, str]
) -> None:
    assert not can_redraw(output, environment)


def test_the_sink_of_a_stage_depends_on_terminal_setting_and_display(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(terminal_sink("ppo", 20, live="auto"), ConsoleSink)
    monkeypatch.setattr("rlhf.runtime.terminal.can_redraw", lambda *_: True)
    assert isinstance(terminal_sink("ppo", 20, live="off"), ConsoleSink)
    assert isinstance(terminal_sink("eval", 1, live="auto"), ConsoleSink)
    other = ConsoleSink("ppo", 20, output=io.StringIO())
    with terminal_sinks_from(lambda _stage, _steps: other):
        assert terminal_sink("ppo", 20, live="auto") is other
    view = terminal_sink("ppo", 20, live="auto")
    assert isinstance(view, LiveSink)
    view.close({}, failed=False)


CHILD = """
import signal, time, warnings
# A shell that started the tests in the background has them, and their children, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
from rlhf.runtime.terminal import terminal_sink
sink = terminal_sink("ppo", 9, live="auto")
try:
    sink.log(1, {"objective/kl": 1.25})
    warnings.warn("from a library")
    print("READY", flush=True)
    time.sleep(60)
finally:
    sink.close({}, failed=True)
"""


def test_ctrl_c_leaves_the_last_view_and_a_terminal_with_its_cursor() -> None:
    ours, theirs = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "CI")}
    environment |= TERMINAL | {"PYTHONIOENCODING": "utf-8", "COLUMNS": "100"}
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=theirs, stdout=theirs, stderr=theirs, env=environment, close_fds=True
    )
    os.close(theirs)
    output = b""
    deadline = time.monotonic() + 60
    while b"READY" not in output and time.monotonic() < deadline:
        if select.select([ours], [], [], 1)[0]:
            output += os.read(ours, 65536)
    child.send_signal(2)
    while select.select([ours], [], [], 30)[0]:
        try:
            output += os.read(ours, 65536)
        except OSError:
            # The other end of a pseudoterminal is closed.
            break
    os.close(ours)
    assert child.wait(timeout=30) != 0
    text = output.decode()
    assert "from a library" in text
    assert "KeyboardInterrupt" in text
    hidden, shown = text.rindex("\x1b[?25l"), text.rindex("\x1b[?25h")
    assert shown > hidden, "the cursor is back"
    assert "step 1/9" in text[text.rindex("╭") :]
