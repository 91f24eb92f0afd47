"""The report of a classification: accuracy, confusion, prompts, then what every training stage shows."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from rlhf.reports.page import Headline, ReportPage, Section, Table, Verdict
from rlhf.reports.training import generic_training_page
from rlhf.runtime.run_folder import RunFiles


def is_classification(summary: Mapping[str, object]) -> bool:
    """Whether a summary is that of `rlhf classify`."""
    return "confusion" in summary


def classification_page(folder: str | Path) -> ReportPage:
    """The page of a run that has its summary."""
    files = RunFiles(folder)
    summary = cast(dict[str, Any], files.read_summary())
    labels = cast(list[str], files.read_config()["labels"])
    page = generic_training_page(folder, f"Classification of {files.path.resolve().name}")
    verdict = _verdict(summary)
    return replace(
        page,
        verdicts=[verdict, *page.verdicts],
        headlines=_headlines(summary),
        sections=[_confusion(summary, labels), *_prompts(summary, labels), *page.sections],
    )


def _verdict(summary: dict[str, Any]) -> Verdict:
    interval = f"{summary['accuracy']:.3f} ({summary['low']:.3f} to {summary['high']:.3f})"
    if summary["low"] > summary["majority"]:
        return Verdict(f"Accuracy {interval}; the most frequent label alone has {summary['majority']:.3f}.", "good")
    text = f"Accuracy {interval} cannot be told from always saying the most frequent label ({summary['majority']:.3f})."
    return Verdict(text, "warning")


def _headlines(summary: dict[str, Any]) -> list[Headline]:
    return [
        Headline("accuracy", summary["accuracy"], f"95 %: {summary['low']:.3f} to {summary['high']:.3f}"),
        Headline("training rows", summary["train_rows"]),
        Headline("trained parameters", summary["trained_parameters"], f"{100 * summary['trained_share']:.3g} % of all"),
        Headline("training seconds", summary["seconds"]),
        Headline("peak memory", summary["peak_memory_mib"], "MiB"),
    ]


def _confusion(summary: dict[str, Any], labels: Sequence[str]) -> Section:
    rows = [
        [label, *counts, recall]
        for label, counts, recall in zip(labels, summary["confusion"], summary["recalls"], strict=True)
    ]
    table = Table(("label", *(f"said {label}" for label in labels), "recall"), rows)
    return Section("Confusion", "Held-out texts of each label, by what was said of them.", tables=[table])


def _prompts(summary: dict[str, Any], labels: Sequence[str]) -> list[Section]:
    rows = [
        [number, question["template"], *(", ".join(words) for words in question["words"])]
        for number, prompt in enumerate(summary["prompts"], start=1)
        for question in prompt
    ]
    table = Table(("prompt", "template", *labels), rows)
    return [Section("Prompts", "What was asked, and the words of each label.", tables=[table])] if rows else []
