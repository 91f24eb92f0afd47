"""`rlhf methods`: one classification task under several ways of tuning and several seeds, as one table.

Every run is a `rlhf classify` in a process and a run folder of its own, `<run_dir>/<method>/seed-<seed>`: memory is
then that of the run, and a finished run stays when the comparison is resumed, or gets another method. Owns the runs;
the table is `method_table`.
"""

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from pathlib import Path

from rich.console import Console
from rich.table import Table

from policies.config import StrictModel
from rlhf.classification import stage
from rlhf.classification.method_page import methods_page
from rlhf.classification.method_table import MethodRow, method_rows, summary_of
from rlhf.config import ClassifyConfig, MethodsConfig
from rlhf.config.methods import ComparedMethod
from rlhf.reports.page import write_report
from rlhf.runtime.run_folder import RunFiles, open_run
from rlhf.runtime.saved_config import let_grow, refuse_changed_config

RunOne = Callable[[ClassifyConfig, bool], None]

_PIPE_COLUMNS = 120
_MAY_GROW = ("methods", "seeds", "reference")
"""Keys that a resumed comparison may change: runs that stay are checked one by one."""


class MethodRunError(RuntimeError):
    """The process of a run ended without a result."""


def run(config: MethodsConfig, *, resume: bool) -> None:
    """Runs what has not finished yet, and leaves the table in summary.json and report.html.

    Raises:
        ValueError: what the user can fix.
        MethodRunError: a run's process was ended from outside, for instance for want of memory.
    """
    compare(config, resume=resume, run_one=run_apart)


def compare(config: MethodsConfig, *, resume: bool, run_one: RunOne) -> list[MethodRow]:
    """`run`, with the given way to run one classification."""
    runs = {(method.name, seed): sub_run(config, method, seed) for method in config.methods for seed in config.seeds}
    if resume:
        let_grow(RunFiles(config.run_dir).config_path, config.model_dump(mode="json"), _MAY_GROW)
    with open_run(config.run_dir, config, resume=resume) as folder:
        for classify in runs.values():
            _finish(classify, run_one)
        folders = {key: RunFiles(classify.run_dir) for key, classify in runs.items()}
        rows = method_rows(config, folders)
        folder.write_summary(summary_of(config, rows))
        page = write_report(folder.path, methods_page(folder.path))
    _print(rows, page)
    return rows


def sub_run(config: MethodsConfig, method: ComparedMethod, seed: int) -> ClassifyConfig:
    """The classification of one method and seed."""
    base = config.classify
    changes: dict[str, object] = {
        "model": base.model.model_copy(update={"tuning": method.tuning}),
        "method": method.method or base.method,
        "epochs": base.epochs if method.epochs is None else method.epochs,
        "optimizer": base.optimizer.model_copy(
            update={} if method.learning_rate is None else {"learning_rate": method.learning_rate}
        ),
        "run_dir": str(Path(config.run_dir) / method.name / f"seed-{seed}"),
        "seed": seed,
        "tracking": config.tracking,
    }
    # From plain values, so that what the methods changed is checked like any configuration.
    return ClassifyConfig.model_validate({**base.model_dump(), **_plain(changes)})


def _plain(values: Mapping[str, object]) -> dict[str, object]:
    return {key: value.model_dump() if isinstance(value, StrictModel) else value for key, value in values.items()}


def run_apart(config: ClassifyConfig, resume: bool) -> None:  # noqa: FBT001 - the type of `RunOne` has positions only
    """One classification in a process of its own.

    Raises:
        MethodRunError: the process was ended from outside.
    """
    # A server that has the libraries loaded is forked, so that a run does not spend its first seconds on imports.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([stage.__name__])
    try:
        with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
            pool.submit(_run_with_parent, config, resume).result()
    except BrokenProcessPool as error:
        raise MethodRunError(
            f"the process of {config.run_dir} ended without a result (out of memory?); continue with --resume"
        ) from error


def _run_with_parent(config: ClassifyConfig, resume: bool) -> None:  # noqa: FBT001 - as `RunOne`
    """`stage.run`, which ends when the process that asked for it does, however that ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "it runs in a process of its own"
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    stage.run(config, resume=resume)


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    # At once: a checkpoint is whole or not there, whenever a run ends.
    os._exit(1)


def _finish(config: ClassifyConfig, run_one: RunOne) -> None:
    """Runs or continues a classification; one that has its summary is kept, if it is of the same configuration."""
    files = RunFiles(config.run_dir)
    if files.read_summary():
        refuse_changed_config(files.config_path, config.model_dump(mode="json"), type(config))
        return
    run_one(config, files.holds_run())


def _print(rows: list[MethodRow], page: Path) -> None:
    table = Table("method", "accuracy", "range over seeds", "difference", "share trained", "s", "MiB")
    for row in rows:
        difference = row.difference
        table.add_row(
            row.name,
            f"{row.accuracy:.4f}",
            f"{row.lowest:.4f} to {row.highest:.4f}",
            f"{difference.value:+.4f} ({difference.low:+.4f} to {difference.high:+.4f})",
            f"{100 * row.trained_share:.3g} %",
            f"{row.seconds:.1f}",
            f"{row.peak_memory_mib:.0f}",
        )
    # In a pipe, rich assumes 80 columns and would fold the rows.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_COLUMNS)
    console.print(table)
    console.print(f"report: {page}", markup=False, soft_wrap=True)
