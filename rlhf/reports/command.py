"""`rlhf report RUN [RUN ...]`."""

from pathlib import Path

from rich.console import Console

from rlhf.reports.comparison import comparison_page, read_runs
from rlhf.reports.config import ReportConfig
from rlhf.reports.page import render_page
from rlhf.reports.training import generic_training_page
from rlhf.runtime.json_lines import write_atomically
from rlhf.runtime.run_folder import RunFiles

COMPARISON_FILE = "comparison.html"


def run(config: ReportConfig, *, resume: bool) -> None:
    """Writes the page and says where it lies.

    Raises:
        ValueError: a path holds no run, or a run is named twice.
    """
    assert not resume, "the command line offers --resume to resumable stages only"
    if len(config.runs) == 1:
        read_runs(config.runs)
        path = RunFiles(config.runs[0]).report_path
        page = generic_training_page(config.runs[0])
    else:
        path, page = Path(COMPARISON_FILE), comparison_page(config.runs)
    path = path if config.output is None else Path(config.output)
    write_atomically(path, render_page(page))
    Console(highlight=False).print(f"report: {path}", markup=False, soft_wrap=True)
