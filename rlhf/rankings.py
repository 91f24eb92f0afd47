"""`rlhf rankings`: scored responses, votes of many raters or win/lose/tie logs become rankings or weighted pairs.

    rankings.jsonl    `prompt`, `responses`, `ranking`
    pairs.jsonl       `prompt`, `chosen`, `rejected`, `margin`, `weight`, with output=pairs
    strengths.json    models by strength with intervals; responses, where rows name no models; strengths.csv is the same
    raters.csv        weight, reliability and agreement of each rater

Owns files and their columns. The statistics are `reward.rankings`, words and layout `rlhf.reports.rankings`.
"""

import csv
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from reward.rankings.aggregation import pair_rows, ranking_row
from reward.rankings.config import GivenRaters, RankingsConfig
from reward.rankings.outcome import Outcome, find_outcome
from reward.rankings.raters import Rater
from reward.rankings.reading import judgements_from_rows
from rlhf.data import load_rows
from rlhf.reports.page import write_report
from rlhf.reports.rankings import print_outcome, rankings_page
from rlhf.runtime import json_lines
from rlhf.runtime.run_folder import open_run, refuse_existing_run
from rlhf.runtime.terminal import stages_announce

logger = logging.getLogger(__name__)

_SHOWN_SKIPPED = 20
_Z = 1.959964


def run(config: RankingsConfig, *, resume: bool) -> None:
    """Aggregates the judgements, writes the run folder and prints the table.

    Raises:
        ValueError: what the user can fix, before the run folder is made.
    """
    assert not resume, "the command line offers --resume to resumable stages only"
    refuse_existing_run(config.run_dir)
    rows = load_rows(config.data.train, field="data.train")
    given = load_rows(config.raters.path, field="raters.path") if isinstance(config.raters, GivenRaters) else []
    source = f"data.train={config.data.train}"
    judged = judgements_from_rows(rows, config.data.format, source=source, on_bad_row=config.data.on_bad_row)
    for line in judged.skipped[:_SHOWN_SKIPPED]:
        logger.warning("skipped %s", line)
    outcome = find_outcome(judged, config, given)
    written = _written_rows(outcome, config)
    summary = summarize(outcome, config, rows=len(rows), written=len(written))
    with open_run(config.run_dir, config, resume=False) as folder:
        _write_tables(folder.path, outcome)
        if written:
            json_lines.write_objects(folder.path / f"{config.output}.jsonl", written)
        folder.write_summary(summary)
        write_report(folder.path, rankings_page(folder.path, outcome, summary))
    if stages_announce():
        print_outcome(folder.path, outcome, summary)


def summarize(outcome: Outcome, config: RankingsConfig, *, rows: int, written: int) -> dict[str, Any]:
    """The numbers of summary.json."""
    judged, ranked, table = outcome.judged, outcome.ranked, outcome.standings
    return {
        "rows": rows,
        "skipped_rows": len(judged.skipped),
        "prompts": len(judged.prompts),
        "responses": len(judged.responses),
        "judgements": len(judged.judgements),
        "raters": len(judged.raters),
        "models": len(judged.models),
        "written_file": f"{config.output}.jsonl" if written else None,
        "written_rows": written,
        "tied_prompts": ranked.tied,
        "prompts_without_text": ranked.without_text,
        "repeated_responses": ranked.repeated,
        "agreement": asdict(outcome.agreement) if outcome.agreement else None,
        "raters_who_disagree": outcome.raters.outliers,
        "strongest_model": table.models[0].model if table else None,
        "fit": None
        if table is None
        else {
            "model": config.fit.model,
            "prior_std": config.fit.prior_std,
            "log_likelihood": table.log_likelihood,
            "tie_parameter": table.tie_parameter,
            "bootstrap_resamples": table.bootstrap_resamples,
            "bootstrap_lost": table.bootstrap_lost,
        },
        "notes": outcome.notes,
    }


def _written_rows(outcome: Outcome, config: RankingsConfig) -> list[dict[str, object]]:
    if config.output == "rankings":
        return [ranking_row(found) for found in outcome.ranked.prompts]
    return [row for found in outcome.ranked.prompts for row in pair_rows(found)]


def _write_tables(folder: Path, outcome: Outcome) -> None:
    strengths = _strength_rows(outcome)
    json_lines.write_atomically(folder / "strengths.json", json_lines.encode(strengths, indent=2) + "\n")
    json_lines.write_atomically(folder / "strengths.csv", to_csv(strengths))
    if outcome.raters.raters:
        raters = [_rater_row(rater) for rater in outcome.raters.raters]
        json_lines.write_atomically(folder / "raters.csv", to_csv(raters))


def _strength_rows(outcome: Outcome) -> list[dict[str, object]]:
    """One row a model, strongest first; one a response, in the order of the prompts, where there are no models."""
    if outcome.standings is not None:
        return [asdict(standing) for standing in outcome.standings.models]
    rows: list[dict[str, object]] = []
    for number, found in enumerate(outcome.ranked.prompts):
        errors = None if found.covariance is None else _Z * np.sqrt(np.diag(found.covariance))
        for place, (text, strength) in enumerate(zip(found.responses, found.strengths.tolist(), strict=True)):
            row: dict[str, object] = {"prompt": number, "response": place, "text": text, "strength": strength}
            if errors is not None:
                row |= {"fisher_low": strength - float(errors[place]), "fisher_high": strength + float(errors[place])}
            rows.append(row)
    return rows


def _rater_row(rater: Rater) -> dict[str, object]:
    row = asdict(rater)
    return {**{key: value for key, value in row.items() if key != "agreement"}, **row["agreement"]}


def to_csv(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows with the same fields as CSV text with a header; None is an empty cell."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
