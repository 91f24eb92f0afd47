"""What `rlhf reward` tells at its end: a table on the terminal, and its own sections of report.html.

Owns the order of the page. Every number comes from the summary; what to conclude is `reward_verdicts`, the parts of the
page are `reward_sections`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as ConsoleTable

from reward.encoding import TokenIds
from reward.interface import Scores
from reward.preference_batch import EncodedComparison
from rlhf.reports.page import Answer, Headline, ReportPage, Sample, Section
from rlhf.reports.reward_sections import interval_text, measured_sections
from rlhf.reports.reward_verdicts import Summary, verdicts_on
from rlhf.reports.training import generic_training_page
from rlhf.runtime.run_folder import RunFiles

_SHOWN_EXAMPLES = 8


def print_outcome(run_folder_path: Path, summary: Summary) -> None:
    """Prints held-out accuracy beside the trivial baselines, what to conclude, and where the model lies."""
    console = Console(highlight=False)
    if summary["accuracy"] is not None:
        table = ConsoleTable("held-out pairs", "accuracy", "95 % interval", "reward model's lead")
        table.add_row("reward model", *_console_cells(summary), "")
        for name, found in summary["baselines"].items():
            lead = found["lead"]
            paired = f"{lead['value']:+.3f} ({lead['low']:+.3f} to {lead['high']:+.3f})"
            table.add_row(name.replace("_", " "), *_console_cells(found), paired)
        console.print(table)
        for verdict in verdicts_on(summary):
            console.print(verdict.text)
        if "ensemble" in summary:
            _print_ensemble(console, summary["ensemble"])
    console.print(f"model {run_folder_path / 'model'}, report {RunFiles(run_folder_path).report_path}", soft_wrap=True)


def reward_page(run_folder_path: Path, examples: Sequence[Mapping[str, Any]]) -> ReportPage:
    """The page of any training stage, led by what was measured on held-out comparisons and some of them, scored."""
    page = generic_training_page(run_folder_path, f"Reward model of {Path(run_folder_path).name}")
    files = RunFiles(run_folder_path)
    summary: Summary = files.read_summary()
    if summary["accuracy"] is None:
        return page
    rows = [row for row in files.read_metrics() if "rm/eval_loss" in row]
    setting = [section for section in page.sections if section.title == "Setting"]
    charts = [section for section in page.sections if section.title not in ("Setting", "Summary")]
    return replace(
        page,
        verdicts=[*verdicts_on(summary), *page.verdicts],
        headlines=_headlines(summary),
        sections=[*setting, *measured_sections(summary, rows), *_example_sections(examples), *charts],
        is_from_files=False,
    )


def scored_examples(
    held_out: Sequence[EncodedComparison], score: Callable[[Sequence[TokenIds]], Scores]
) -> list[dict[str, Any]]:
    """The first held-out comparisons: prompt, and best and worst response with their scores."""
    examples: list[dict[str, Any]] = []
    for encoded in held_out[:_SHOWN_EXAMPLES]:
        ranking = encoded.comparison.ranking
        ends = (ranking[0][0], ranking[-1][0])
        scores = score([encoded.sequences[index] for index in ends])
        responses = [
            {"name": name, "text": encoded.comparison.responses[index], "score": float(value)}
            for name, index, value in zip(("preferred", "not preferred"), ends, scores, strict=True)
        ]
        examples.append({"prompt": encoded.comparison.prompt, "responses": responses})
    return examples


def _print_ensemble(console: Console, found: Mapping[str, Any]) -> None:
    accuracy, interval = _console_cells(found)
    console.print(
        f"The mean of the {len(found['members'])} members has accuracy {accuracy} ({interval}); they disagree by "
        f"{found['disagreement_mean']:.3f} on average. The report has the lines that use them in PPO."
    )


def _console_cells(found: Mapping[str, Any]) -> tuple[str, str]:
    return f"{found['accuracy']:.3f}", f"{found['accuracy_low']:.3f} to {found['accuracy_high']:.3f}"


def _headlines(summary: Summary) -> list[Headline]:
    calibration = summary["calibration_scaled"] or summary["calibration"]
    return [
        Headline("held-out accuracy", summary["accuracy"], interval_text(summary, "accuracy")),
        Headline("calibration error", calibration["error"], interval_text(calibration, "error")),
        Headline("held-out loss", summary["loss"], "nats a pair; 0.693 is a coin"),
        Headline("score with length", summary["length"]["spearman_within"], "rank correlation within a prompt"),
        Headline("training", summary["seconds"], "seconds"),
    ]


def _example_sections(examples: Sequence[Mapping[str, Any]]) -> list[Section]:
    if not examples:
        return []
    samples = [
        Sample(
            example["prompt"],
            [
                Answer(response["name"], response["text"], {"score": response["score"]})
                for response in example["responses"]
            ],
        )
        for example in examples
    ]
    return [Section("Held-out examples", "Normalised scores of the first held-out comparisons.", samples=samples)]
