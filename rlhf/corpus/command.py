"""`rlhf corpus`: rows with `text` become corpus.jsonl(.gz) of the run folder, cleaned, with a tally of every rule.

Owns files and the order of things. Rows are read, cleaned and written one at a time; the same rows, configuration and
seed give the same bytes.
"""

import gzip
import io
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, cast

from policies.disk import writing
from rlhf.corpus.cleaning import Cleaning, build_rules
from rlhf.corpus.config import CorpusConfig
from rlhf.corpus.page import corpus_page, print_outcome
from rlhf.data import Row, stream_rows
from rlhf.reports.page import write_report
from rlhf.runtime import json_lines
from rlhf.runtime.run_folder import open_run, refuse_existing_run
from rlhf.runtime.terminal import stages_announce
from rlhf.text_stream import text_problem

logger = logging.getLogger(__name__)

_LOGGED_SKIPPED = 20


def run(config: CorpusConfig, *, resume: bool) -> None:
    """Cleans the corpus, writes the run folder and prints the table.

    Raises:
        ValueError: what the user can fix; no run is left behind.
        DiskError: the disk is full.
    """
    assert not resume, "the command line offers --resume to resumable stages only"
    refuse_existing_run(config.run_dir)
    cleaning = Cleaning(build_rules(config), examples_per_rule=config.examples_per_rule)
    reader = CorpusRows(config)
    folder_path = Path(config.run_dir)
    name = "corpus.jsonl.gz" if config.compress else "corpus.jsonl"
    # Aside, so that a bad row in the middle leaves no folder that holds a run.
    aside = folder_path.with_name(f".{folder_path.name}.{name}.tmp")
    aside.parent.mkdir(parents=True, exist_ok=True)
    try:
        write_rows(aside, cleaned_rows(reader, cleaning), compress=config.compress)
        if not cleaning.kept_documents:
            raise ValueError(
                f"data.train={config.data.train}: the rules leave none of {cleaning.documents} documents (most went to "
                f"{max(cleaning.tallies, key=lambda tally: tally.documents_dropped).rule}); relax or switch off a rule"
            )
        summary = summarize(cleaning, skipped_rows=reader.skipped_rows, written_file=name)
        with open_run(config.run_dir, config, resume=False) as folder:
            aside.replace(folder.path / name)
            folder.write_summary(summary)
            write_report(folder.path, corpus_page(folder.path, cleaning, summary))
    finally:
        aside.unlink(missing_ok=True)
    if stages_announce():
        print_outcome(folder_path, cleaning, summary)


class CorpusRows:
    """The rows of `data.train` that have a text, one after the other, with their numbers.

    Attributes:
        skipped_rows: Rows that `on_bad_row=skip` has left out so far.
    """

    def __init__(self, config: CorpusConfig) -> None:
        self._data = config.data
        self.skipped_rows = 0

    def __iter__(self) -> Iterator[tuple[int, Row]]:
        source = f"data.train={self._data.train}"
        for number, row in enumerate(stream_rows(self._data.train, field="data.train")):
            problem = text_problem(row)
            if problem is None:
                yield number, row
                continue
            if self._data.on_bad_row == "error":
                raise ValueError(f"{source}, row {number}: {problem}; or set data.on_bad_row=skip")
            self.skipped_rows += 1
            if self.skipped_rows <= _LOGGED_SKIPPED:
                logger.warning("skipped %s, row %d: %s", source, number, problem)


def cleaned_rows(rows: Iterable[tuple[int, Row]], cleaning: Cleaning) -> Iterator[Row]:
    """The rows of which something stays, their other columns unchanged."""
    for number, row in rows:
        text = cleaning.clean(cast(str, row["text"]), row=number)
        if text:
            yield {**row, "text": text}


def write_rows(path: Path, rows: Iterable[Row], *, compress: bool) -> None:
    """One JSON object a line, as it comes.

    Raises:
        DiskError: the disk is full.
    """
    with _opened(path, compress=compress) as file:
        for row in rows:
            line = json_lines.encode(row) + "\n"
            with writing(path):
                file.write(line)


def summarize(cleaning: Cleaning, *, skipped_rows: int, written_file: str) -> dict[str, Any]:
    """The numbers of summary.json."""
    return {
        "documents": cleaning.documents,
        "kept_documents": cleaning.kept_documents,
        "bytes": cleaning.bytes_before,
        "kept_bytes": cleaning.bytes_after,
        "skipped_rows": skipped_rows,
        "written_file": written_file,
        "rules": [asdict(tally) for tally in cleaning.tallies],
    }


@contextmanager
def _opened(path: Path, *, compress: bool) -> Iterator[IO[str]]:
    with writing(path), path.open("wb") as raw:
        # Without name and time in its header, the same text gives the same file.
        target = gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) if compress else raw
        text = io.TextIOWrapper(cast(IO[bytes], target), encoding="utf-8", errors="backslashreplace", newline="\n")
        yield text
        text.flush()
        if compress:
            target.close()
