"""A training run that is interrupted and continued, beside the straight one."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch
from safetensors.torch import load_file

from rlhf.runtime.metrics import JsonlSink
from rlhf.runtime.run_folder import RunFiles


class HasRunDir(Protocol):
    """A stage's configuration."""

    @property
    def run_dir(self) -> str: ...


def column(config: HasRunDir, key: str) -> list[float]:
    """A metric at each step that logged it."""
    return [row[key] for row in RunFiles(config.run_dir).read_metrics() if key in row]  # pyright: ignore[reportReturnType]


def trained_weights(config: HasRunDir, folder: str = "model") -> dict[str, torch.Tensor]:
    """What a run has saved: a whole model, or an adapter."""
    (file,) = (Path(config.run_dir) / folder).glob("*model.safetensors")
    return load_file(file)


def interrupt_once(monkeypatch: pytest.MonkeyPatch, *, at_step: int) -> None:
    """The first run that comes to the log line of `at_step` gets a Ctrl-C in its place."""
    log = JsonlSink.log

    def log_or_interrupt(self: JsonlSink, step: int, metrics: Any) -> None:
        if step == at_step:
            monkeypatch.undo()
            raise KeyboardInterrupt
        log(self, step, metrics)

    monkeypatch.setattr(JsonlSink, "log", log_or_interrupt)


def require_bitwise_resume(
    run: Callable[..., None],
    straight: HasRunDir,
    broken: HasRunDir,
    keys: Sequence[str],
    monkeypatch: pytest.MonkeyPatch,
    *,
    at_step: int,
) -> None:
    """Runs the first configuration through and the second with an interruption; both must end in the same bits.

    Args:
        run: The stage's `run`.
        straight: Configuration of the run that is left alone.
        broken: The same for another folder.
        keys: Metrics that are compared.
        monkeypatch: The test's own.
        at_step: Step whose log line is not written the first time.
    """
    run(straight, resume=False)
    interrupt_once(monkeypatch, at_step=at_step)
    with pytest.raises(KeyboardInterrupt):
        run(broken, resume=False)
    run(broken, resume=True)
    for key in keys:
        assert column(straight, key)
        assert column(broken, key) == column(straight, key)
    one, other = trained_weights(straight), trained_weights(broken)
    assert all(torch.equal(one[name], other[name]) for name in one | other)
