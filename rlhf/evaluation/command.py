"""`rlhf eval`: models answer the same held-out prompts, judges decide, and what alignment cost is measured.

Owns the order of things and the run folder; it trains nothing.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rlhf.config import EvalConfig
from rlhf.evaluation.measurements import Measurements, measure
from rlhf.evaluation.page import evaluation_page
from rlhf.evaluation.setting import build_judges, read_setting
from rlhf.evaluation.summary import summarise
from rlhf.evaluation.verdicts import verdicts_on
from rlhf.reports.page import write_report
from rlhf.runtime.metrics import open_metric_logger
from rlhf.runtime.run_folder import open_run, refuse_existing_run


def run(config: EvalConfig, *, resume: bool) -> None:
    """Runs `rlhf eval`: summary.json, samples.jsonl and report.html in run_dir.

    Raises:
        ValueError: what the user can fix.
        EndpointError: a judge's endpoint does not answer.
    """
    resolved = config.model_dump(mode="json")
    start = time.perf_counter()
    if not resume:
        refuse_existing_run(config.run_dir)
    setting, judges = read_setting(config), build_judges(config)
    measured = measure(config, setting, judges)
    summary = {**summarise(config, measured), **setting.facts, "seconds": time.perf_counter() - start}
    # Opened last: an evaluation keeps no state, so one that failed must not leave a folder that holds a run.
    with (
        open_run(config.run_dir, config, resume=resume) as folder,
        open_metric_logger(folder, config.tracking, resolved, stage="eval", total_steps=1) as logger,
    ):
        folder.truncate_after(-1)
        logger.log(1, _metrics(summary))
        logger.log_samples(1, _sample_rows(measured))
        logger.close(summary)
        page = write_report(folder.path, evaluation_page(folder.path))
    _print(Console(highlight=False), summary, page)


def _print(console: Console, summary: Mapping[str, Any], page: Path) -> None:
    """The comparison as two tables, the models side by side and each judge's verdict, and what to conclude."""
    sides = Table("", "score", "tokens an answer", "ended by itself", "perplexity on text")
    for side in ("candidate", "baseline"):
        numbers = summary[side]
        cells = (numbers["score"], numbers["response_length_mean"], numbers["eos_rate"], numbers["pretrain_ppl"])
        sides.add_row(side, *("-" if cell is None else f"{cell:.3f}" for cell in cells))
    judges = Table("judge", "win rate", "at equal length", "gain in score")
    for name, numbers in summary["judges"].items():
        gain = _with_interval(numbers, "gain", "+.3f") if "gain" in numbers else "-"
        judges.add_row(
            name, _with_interval(numbers, "win_rate"), _with_interval(numbers, "length_controlled_win_rate"), gain
        )
    console.print(sides)
    console.print(judges)
    console.print(f"KL from the baseline: {summary['kl']:.2f} nats per answer; {summary['prompts']} prompts")
    for verdict in verdicts_on(summary):
        console.print(verdict.text, markup=False)
    console.print(f"report: {page}", markup=False, soft_wrap=True)


def _with_interval(numbers: Mapping[str, Any], name: str, form: str = ".3f") -> str:
    mean, low, high = (format(numbers[name + end], form) for end in ("", "_low", "_high"))
    return f"{mean} ({low} to {high})"


def _metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    rates = [f"{name}{end}" for name in ("win_rate", "length_controlled_win_rate") for end in ("", "_low", "_high")]
    metrics = {f"eval/{name}": summary[name] for name in (*rates, "kl")}
    for side in ("candidate", "baseline"):
        metrics[f"eval/{side}/score"] = summary[side]["score"]
        metrics[f"eval/{side}/response_length_mean"] = summary[side]["response_length_mean"]
        if summary[side]["pretrain_ppl"] is not None:
            metrics[f"eval/{side}/pretrain_perplexity"] = summary[side]["pretrain_ppl"]
    return metrics


def _sample_rows(measured: Measurements) -> list[dict[str, Any]]:
    candidate, baseline = measured.candidate.answers, measured.baseline.answers
    columns = zip(
        candidate.batch.prompts,
        candidate.texts,
        candidate.reward.scores,
        baseline.texts,
        baseline.reward.scores,
        strict=True,
    )
    rows: list[dict[str, Any]] = [
        {
            "prompt_id": prompt.id,
            "prompt": prompt.text,
            "response": mine,
            "score": float(mine_score),
            "baseline_response": theirs,
            "baseline_score": float(theirs_score),
        }
        for prompt, mine, mine_score, theirs, theirs_score in columns
    ]
    for name, found in measured.verdicts.items():
        for row, outcome in zip(rows, found.outcomes.tolist(), strict=True):
            row[f"outcome_{name}"] = outcome
    return rows
