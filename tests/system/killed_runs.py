"""PPO runs that die by SIGKILL at a named moment, in a process forked from one that has already imported everything.

The product knows nothing of it: the child replaces one function by one that counts its calls and kills the process
before, after or in the middle of the one that is named.
"""

import functools
import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import pytest

from rlhf.config import PpoConfig
from tests.local_actors import without_ray
from tests.tiny_ppo import run_ppo


@dataclass(frozen=True)
class KillPoint:
    """When a run dies.

    Attributes:
        target: `module:function` or `module:Class.method` that is watched.
        call: Which of its calls, from 1.
        moment: Before or after that call.
        torn: Glob inside the run folder of files that have half of what the call wrote; empty tears none.
    """

    target: str
    call: int
    moment: Literal["before", "after"] = "before"
    torn: str = ""


def run_until_killed(settings: Mapping[str, Any], point: KillPoint, *, resume: bool = False) -> None:
    """Starts or resumes the run in a process of its own and waits until it is killed; no other end is accepted."""
    # Not forked from this process: torch refuses a backward pass in the child of a process that has made one.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "rlhf.trainers.ppo"])
    child = context.Process(target=_run, args=(dict(settings), point), kwargs={"resume": resume})
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL, f"{point} was not reached: exit code {child.exitcode}"


def _run(settings: Mapping[str, Any], point: KillPoint, *, resume: bool) -> None:
    config = PpoConfig.model_validate(settings)
    with pytest.MonkeyPatch.context() as monkeypatch:
        if config.placement.kind == "split":
            without_ray(monkeypatch)
        owner, name = _owner(point.target)
        monkeypatch.setattr(owner, name, _deadly(getattr(owner, name), point, Path(config.run_dir)))
        run_ppo(config, resume=resume)


def _owner(target: str) -> tuple[Any, str]:
    module, _, path = target.partition(":")
    *parents, name = path.split(".")
    return functools.reduce(getattr, parents, import_module(module)), name


def _deadly(function: Callable[..., Any], point: KillPoint, run_dir: Path) -> Callable[..., Any]:
    calls = 0

    @functools.wraps(function)
    def counted(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != point.call:
            return function(*arguments, **keywords)
        before = _sizes(run_dir, point.torn)
        if point.moment == "after":
            function(*arguments, **keywords)
        for path, size in _sizes(run_dir, point.torn).items():
            os.truncate(path, (before.get(path, 0) + size) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
        return None

    return counted


def _sizes(run_dir: Path, pattern: str) -> dict[Path, int]:
    return {path: path.stat().st_size for path in run_dir.glob(pattern)} if pattern else {}
