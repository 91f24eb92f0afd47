"""A headless Chromium for tests of pages: DevTools over the pipe that the browser itself offers, no library.

The browser is the distribution's package `chromium`; where none is on PATH, tests skip. Owns the process, pages of a
given width and colour scheme, and what the console said.
"""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
TIMEOUT_SECONDS = 60.0
_OPTIONS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",  # Tests may run as root, where the sandbox refuses to start; the pages are our own.
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
)
_READ, _WRITE = 3, 4
"""File descriptors on which the browser reads commands and writes answers."""


def find_browser() -> str | None:
    """Path of a Chromium, or None."""
    return next((path for name in PROGRAMS if (path := shutil.which(name))), None)


@dataclass(frozen=True, slots=True)
class View:
    """How a page is looked at."""

    name: str
    width: int
    height: int
    scheme: Literal["light", "dark"]


class Browser:
    """One running browser."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._buffer, self._last_id = b"", 0
        self._events: list[dict[str, Any]] = []

    @contextmanager
    def page(self, path: Path, view: View) -> Iterator["Page"]:
        """A local file, loaded in the given view."""
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        page = Page(self, session)
        try:
            page.load(path, view)
            yield page
        finally:
            self.call("Target.closeTarget", {"targetId": target})

    def call(self, method: str, parameters: dict[str, Any] | None = None, session: str | None = None) -> dict[str, Any]:
        """The result of a DevTools command; events that come before it are kept."""
        self._last_id += 1
        message: dict[str, Any] = {"id": self._last_id, "method": method, "params": parameters or {}}
        if session is not None:
            message["sessionId"] = session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next_message()
            if answer.get("id") == self._last_id:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._events.append(answer)

    def wait_for(self, method: str, session: str) -> None:
        """Returns once the session has told this event."""
        while not any(event.get("method") == method for event in self.events(session)):
            self._events.append(self._next_message())

    def events(self, session: str) -> list[dict[str, Any]]:
        """What a session has told so far."""
        return [event for event in self._events if event.get("sessionId") == session]

    def _next_message(self) -> dict[str, Any]:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(f"the browser has said nothing for {TIMEOUT_SECONDS:.0f} s")
            received = os.read(self._answers, 1 << 20)
            assert received, "the browser has ended"
            self._buffer += received
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)


class Page:
    """A loaded page."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session

    def load(self, path: Path, view: View) -> None:
        """Shows a local file and waits until it stands."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")
        size = {"width": view.width, "height": view.height, "deviceScaleFactor": 1, "mobile": view.width < 600}
        self._call("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": view.scheme}]
        self._call("Emulation.setEmulatedMedia", {"features": features})
        self._call("Page.navigate", {"url": path.resolve().as_uri()})
        self._browser.wait_for("Page.loadEventFired", self._session)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, as plain JSON."""
        answer = self._call("Runtime.evaluate", {"expression": expression, "returnByValue": True})
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def complaints(self) -> list[str]:
        """Errors, warnings and exceptions that the console has shown."""
        told: list[str] = []
        for event in self._browser.events(self._session):
            parameters = event.get("params", {})
            if event["method"] == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
                told.append(parameters["entry"]["text"])
            elif event["method"] == "Runtime.exceptionThrown":
                told.append(parameters["exceptionDetails"]["text"])
            elif event["method"] == "Runtime.consoleAPICalled":
                told.append(str(parameters["args"]))
        return told

    def requests(self) -> list[str]:
        """Addresses that the page has asked for."""
        events = self._browser.events(self._session)
        return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG."""
        size = self._call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 12000), "scale": 1}
        shot = self._call("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
        path.write_bytes(base64.b64decode(shot["data"]))

    def _call(self, method: str, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
        return self._browser.call(method, parameters, self._session)


@contextmanager
def running_browser(program: str) -> Iterator[Browser]:
    """Starts a browser with a profile of its own, and ends it."""
    (their_read, commands), (answers, their_write) = os.pipe(), os.pipe()
    # Far from the two numbers that the browser wants them to have.
    their_read, their_write = (fcntl.fcntl(number, fcntl.F_DUPFD, 20) for number in (their_read, their_write))

    def place_pipes() -> None:
        os.dup2(their_read, _READ)
        os.dup2(their_write, _WRITE)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [program, *_OPTIONS, f"--user-data-dir={profile}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(_READ, _WRITE),
            preexec_fn=place_pipes,
        )
        os.close(their_read)
        os.close(their_write)
        browser = Browser(commands, answers)
        try:
            yield browser
        finally:
            try:
                browser.call("Browser.close")
                process.wait(10)
            finally:
                process.kill()
                process.wait()
                os.close(commands)
                os.close(answers)


LOOK = """(() => {
  const drawn = 'polyline, circle, rect, polygon, path, line';
  const broken = /NaN|Infinity|undefined|null/;
  const charts = [...document.querySelectorAll('svg')].map(svg => {
    const box = svg.getBoundingClientRect();
    const marks = [...svg.querySelectorAll(drawn)];
    const numbers = marks.flatMap(mark => [...mark.attributes].map(attribute => attribute.value));
    const outside = [...svg.querySelectorAll('text')].filter(text => {
      const b = text.getBoundingClientRect();
      return b.left < -1 || b.right > document.documentElement.clientWidth + 1;
    });
    return {
      label: svg.getAttribute('aria-label') || '',
      visible: box.width > 50 && box.height > 30,
      series: svg.querySelectorAll('[class^="c"] polyline, [class^="c"] circle, [class^="c"] rect').length,
      says_empty: svg.textContent.includes('no finite values'),
      broken: numbers.filter(value => broken.test(value)),
      outside: outside.map(text => text.textContent),
    };
  });
  const root = document.documentElement;
  const wide = [...document.querySelectorAll('main *')].filter(element => {
    if (element.closest('.table, pre, svg')) return false;
    return element.getBoundingClientRect().right > root.clientWidth + 1;
  }).map(element => element.tagName + '.' + element.className);
  const luminance = colour => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map(Number);
    return (0.2126 * r + 0.7152 * g + 0.0722 * b) / 255;
  };
  const style = getComputedStyle(document.body);
  return {
    title: document.title, charts, wide,
    overflow: root.scrollWidth - root.clientWidth,
    paper: luminance(style.backgroundColor), ink: luminance(style.color),
    headings: document.querySelectorAll('h2').length,
    dead_links: [...document.querySelectorAll('a[href^="#"]')]
      .filter(link => !document.getElementById(link.getAttribute('href').slice(1))).map(link => link.href),
    files: [...document.querySelectorAll('a:not([href^="#"])')].map(link => link.getAttribute('href')),
  };
})()"""
"""JavaScript that tells what a reader would see: charts, what is wider than the window, colours, links."""
