"""Stages that run one after the other in one folder: each once, timed, and continued where an earlier start stopped.

Owns what was done; which stages there are, and in which order, is the caller's business (`rlhf.quickstart.pipeline`,
`rlhf.rounds.pipeline`).
"""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rlhf.runtime.json_lines import write_atomically
from rlhf.runtime.run_folder import RunFiles
from rlhf.stage_progress import StageProgress

SECONDS_FILE = "stage_seconds.json"


class StageChain:
    """The stages of one folder.

    Args:
        root: The folder.
        progress: Shows them.
    """

    def __init__(self, root: Path, progress: StageProgress) -> None:
        self._path, self._progress = root / SECONDS_FILE, progress
        self._seconds: dict[str, float] = json.loads(self._path.read_text()) if self._path.exists() else {}

    @property
    def seconds(self) -> Mapping[str, float]:
        """How long each stage took that is done."""
        return self._seconds

    def do(self, name: str, stage: Callable[[], None]) -> None:
        """Runs a stage, unless it has ended before."""
        if name in self._seconds:
            self._progress.skip(name, self._seconds[name])
            return
        self.repeat(name, stage)

    def train(self, name: str, run_stage: Callable[..., None], config: Any) -> None:
        """Runs a training stage, or continues it where its folder holds an interrupted run."""
        self.do(name, lambda: run_stage(config, resume=RunFiles(config.run_dir).holds_run()))

    def repeat(self, name: str, stage: Callable[[], None]) -> None:
        """Runs a stage whose result is not kept, also a second time."""
        start = time.perf_counter()
        with self._progress.stage(name):
            stage()
        self._seconds[name] = round(time.perf_counter() - start, 2)
        write_atomically(self._path, json.dumps(self._seconds, indent=2) + "\n")
