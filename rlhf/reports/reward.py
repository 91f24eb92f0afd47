"""What `rlhf reward` tells at its end: a table on the terminal, and its own sections of report.html.

Owns words and layout; every number comes from the summary.
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
from rlhf.reports.page import Answer, Headline, ReportPage, Sample, Section, Table, Verdict
from rlhf.reports.training import generic_training_page
from rlhf.runtime.run_folder import RunFiles

Summary = Mapping[str, Any]

_SHOWN_EXAMPLES = 8
_BASELINES = {
    "length": "length of the response",
    "bag_of_words": "bag-of-words Bradley-Terry",
    "naive_bayes": "unigram naive Bayes",
}


def print_outcome(run_folder_path: Path, summary: Summary) -> None:
    """Prints held-out accuracy beside the trivial baselines, and where the model lies."""
    console = Console(highlight=False)
    if summary["accuracy"] is not None:
        table = ConsoleTable("", "held-out accuracy", "95 % interval")
        for name, result in _accuracies(summary):
            interval = f"{result['accuracy_low']:.3f} to {result['accuracy_high']:.3f}"
            table.add_row(name, f"{result['accuracy']:.3f}", interval)
        console.print(table)
        console.print(verdict_on(summary).text)
    console.print(f"model {run_folder_path / 'model'}, report {RunFiles(run_folder_path).report_path}", soft_wrap=True)


def reward_page(run_folder_path: Path, examples: Sequence[Mapping[str, Any]]) -> ReportPage:
    """The page of any training stage, led by accuracy beside baselines and some scored held-out responses."""
    page = generic_training_page(run_folder_path, f"Reward model of {Path(run_folder_path).name}")
    summary = RunFiles(run_folder_path).read_summary()
    if summary["accuracy"] is None:
        return page
    charts = [section for section in page.sections if section.title != "Summary"]
    return replace(
        page,
        verdicts=[verdict_on(summary), *page.verdicts],
        headlines=_headlines(summary),
        sections=[_accuracy_section(summary), *_example_sections(examples), *charts],
    )


def verdict_on(summary: Summary) -> Verdict:
    """One sentence: whether the model beats the best trivial baseline."""
    name, best = max(summary["baselines"].items(), key=lambda entry: entry[1]["accuracy"])
    label = f"the best trivial baseline ({_BASELINES[name]}, {best['accuracy']:.3f})"
    accuracy, low, high = (summary[key] for key in ("accuracy", "accuracy_low", "accuracy_high"))
    found = f"Held-out accuracy is {accuracy:.3f} (95 % interval {low:.3f} to {high:.3f})"
    if low > best["accuracy"]:
        return Verdict(f"{found}, above {label}.", "good")
    if high < best["accuracy"]:
        return Verdict(f"{found}, below {label}: word counts alone judge better.", "warning")
    return Verdict(f"{found}, which cannot be told from {label} on this many comparisons.", "neutral")


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


def _accuracies(summary: Summary) -> list[tuple[str, Mapping[str, float]]]:
    return [("reward model", summary), *((_BASELINES[name], found) for name, found in summary["baselines"].items())]


def _headlines(summary: Summary) -> list[Headline]:
    interval = f"95 % interval {summary['accuracy_low']:.3f} to {summary['accuracy_high']:.3f}"
    return [
        Headline("held-out accuracy", summary["accuracy"], interval),
        Headline("margin", summary["margin"], "raw score, better minus worse"),
        Headline("held-out loss", summary["loss"], "nats a pair; 0.693 is a coin"),
        Headline("training", summary["seconds"], "seconds"),
    ]


def _accuracy_section(summary: Summary) -> Section:
    rows = [
        [name, found["accuracy"], found["accuracy_low"], found["accuracy_high"]] for name, found in _accuracies(summary)
    ]
    scale = summary["normalizer"]
    text = (
        f"Share of held-out pairs ranked as the labels say ({summary['pairs']} pairs of {summary['comparisons']} "
        "comparisons; equal scores count one half; the interval resamples comparisons). The baselines are trained on "
        "the same comparisons and see responses only. The weights are those of the last step, so the held-out split "
        f"chose nothing.\n\nScores leave the model as (raw - {scale['mean']:.4g}) / {scale['std']:.4g}: mean 0 and "
        f"standard deviation 1 on {scale['count']} responses ({scale['source']})."
    )
    return Section(
        "Accuracy", text, tables=[Table(("", "accuracy", "95 % from", "to"), rows, title="Held-out pair accuracy")]
    )


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
