"""`rlhf report RUN [RUN ...]`."""

import os
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from rich.console import Console

from rlhf.classification.method_page import is_method_table, methods_page
from rlhf.classification.page import classification_page, is_classification
from rlhf.evaluation.page import evaluation_page, is_evaluation
from rlhf.forgetting.page import forgetting_page, is_task_sequence
from rlhf.instructions.held_out import held_out_sections
from rlhf.reports.comparison import comparison_page, read_runs
from rlhf.reports.config import ReportConfig
from rlhf.reports.page import ReportPage, can_be_written_again, render_page
from rlhf.reports.training import generic_training_page
from rlhf.rounds.page import is_rounds, rounds_page
from rlhf.rounds.provenance import Provenance
from rlhf.runtime.json_lines import write_atomically
from rlhf.runtime.run_folder import RunFiles
from rlhf.tokenizer_comparison.page import is_tokenizer_comparison, tokenizers_page

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
        if config.output is None and not can_be_written_again(path):
            raise ValueError(
                f"runs: {path} was written by its stage, of more than the folder keeps, and stays; name output=FILE "
                "for a page of what the folder holds"
            )
        page = _page_of(config.runs[0])
    else:
        path, page = Path(COMPARISON_FILE), comparison_page(config.runs)
    path = path if config.output is None else Path(config.output)
    if len(config.runs) == 1:
        page = replace(page, run_folder=_way_from(path.parent, Path(config.runs[0])))
    write_atomically(path, render_page(page))
    Console(highlight=False).print(f"report: {path}", markup=False, soft_wrap=True)


def _way_from(folder: Path, run_dir: Path) -> str:
    """The run folder as seen from a page in `folder`, in front of the names of its files."""
    way = os.path.relpath(run_dir.resolve(), folder.resolve())
    return "" if way == "." else f"{quote(Path(way).as_posix())}/"


def _page_of(run_dir: str) -> ReportPage:
    """A run's own page: evaluations, classifications, rounds and comparisons have one, other stages share one."""
    summary = RunFiles(run_dir).read_summary()
    if is_evaluation(summary):
        return evaluation_page(run_dir)
    if is_classification(summary):
        return classification_page(run_dir)
    if is_task_sequence(summary):
        return forgetting_page(run_dir)
    if is_rounds(summary):
        return rounds_page(Path(run_dir), summary, Provenance(Path(run_dir)).records)
    if is_tokenizer_comparison(summary):
        return tokenizers_page(Path(run_dir), summary)
    if is_method_table(summary):
        return methods_page(run_dir)
    page = generic_training_page(run_dir)
    return replace(page, sections=[*held_out_sections(summary), *page.sections])
