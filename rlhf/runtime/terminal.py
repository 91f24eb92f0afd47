"""Which sink speaks to the terminal: plain lines, a view that stays in place, or a surrounding display.

Owns the choice only; the sinks are in `console.py` and `live_view.py`.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, TextIO

from rlhf.runtime.console import ConsoleSink
from rlhf.runtime.live_view import LIVE_ROWS, LiveSink
from rlhf.runtime.sinks.sink import MetricSink

SinkFactory = Callable[[str, int], MetricSink]
_SURROUNDING: ContextVar[SinkFactory | None] = ContextVar("surrounding display", default=None)


@contextmanager
def terminal_sinks_from(factory: SinkFactory) -> Iterator[None]:
    """Inside the context, stages show their numbers through `factory(stage, total_steps)`: one display for all."""
    token = _SURROUNDING.set(factory)
    try:
        yield
    finally:
        _SURROUNDING.reset(token)


def stages_announce() -> bool:
    """Whether a stage should print its outcome itself; False where a surrounding display speaks for the whole chain."""
    return _SURROUNDING.get() is None


def terminal_sink(stage: str, total_steps: int, *, live: Literal["auto", "off"]) -> MetricSink:
    """The sink that shows a stage: what the surrounding display provides, else the live view, else lines.

    Only stages of several steps have a live view.
    """
    factory = _SURROUNDING.get()
    if factory is not None:
        return factory(stage, total_steps)
    is_live = live == "auto" and stage in LIVE_ROWS and total_steps > 1 and can_redraw(sys.stdout, os.environ)
    return LiveSink(stage, total_steps) if is_live else ConsoleSink(stage, total_steps)


def can_redraw(output: TextIO, environment: Mapping[str, str]) -> bool:
    """Whether `output` is a terminal whose owner has not asked for plain text, by NO_COLOR, CI or TERM=dumb."""
    refused = bool(environment.get("NO_COLOR") or environment.get("CI"))
    is_plain = environment.get("TERM", "dumb") in ("dumb", "unknown", "")
    # The sparklines and frames are no ASCII; a terminal of another encoding gets lines.
    is_unicode = (output.encoding or "").lower().replace("-", "") == "utf8"
    return output.isatty() and is_unicode and not refused and not is_plain
