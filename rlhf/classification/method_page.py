"""The report of compared methods: the table, and accuracy over the share of parameters that train."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from rlhf.classification.method_table import HOULSBY_POINTS, HOULSBY_SHARE
from rlhf.reports.charts import Chart, Series
from rlhf.reports.page import Cell, Listing, ReportPage, Section, Table, Verdict
from rlhf.runtime.run_folder import RunFiles

Methods = Mapping[str, Mapping[str, Any]]

_COLUMNS = (
    "method",
    "accuracy",
    "lowest seed",
    "highest seed",
    "difference",
    "from",
    "to",
    "trained, %",
    "trained",
    "seconds",
    "MiB",
)


def is_method_table(summary: Mapping[str, object]) -> bool:
    """Whether a summary is that of `rlhf methods`."""
    return "meets_adapter_result" in summary


def methods_page(folder: str | Path) -> ReportPage:
    """The page of a comparison that has its summary."""
    files = RunFiles(folder)
    summary = cast(dict[str, Any], files.read_summary())
    methods, reference = cast(Methods, summary["methods"]), str(summary["reference"])
    text = (
        f"Mean over the seeds {summary['seeds']}. The difference is to {reference}, on the same texts; its 95 % "
        "interval is a paired bootstrap over texts and says nothing of other seeds. Seconds are of training, memory is "
        "the peak of the run's process."
    )
    section = Section("Methods", text, tables=[Table(_COLUMNS, _rows(methods))], charts=[_chart(methods)])
    record = Section("Record", listings=[Listing("Configuration", files.config_path.read_text(encoding="utf-8"))])
    return ReportPage(
        title=f"Methods of {files.path.resolve().name}",
        subtitle=f"{len(methods)} methods, {len(summary['seeds'])} seeds each.",
        verdicts=[_verdict(summary)],
        sections=[section, record],
    )


def _verdict(summary: Mapping[str, Any]) -> Verdict:
    claim = f"within {100 * HOULSBY_POINTS:.1f} points of full tuning with at most {100 * HOULSBY_SHARE:.1f} % of the "
    claim += "parameters (Houlsby et al. 2019)"
    if names := summary["meets_adapter_result"]:
        return Verdict(f"{claim[0].upper()}{claim[1:]}: {', '.join(names)}.", "good")
    return Verdict(f"No method is {claim}.", "neutral")


def _rows(methods: Methods) -> list[list[Cell]]:
    return [
        [
            name,
            row["accuracy"],
            row["lowest"],
            row["highest"],
            row["difference"]["value"],
            row["difference"]["low"],
            row["difference"]["high"],
            100 * row["trained_share"],
            row["trained_parameters"],
            row["seconds"],
            row["peak_memory_mib"],
        ]
        for name, row in methods.items()
    ]


def _chart(methods: Methods) -> Chart:
    series = [
        Series(name, [x], [row["accuracy"]], [row["lowest"]], [row["highest"]], markers=True, line=False)
        for name, row in methods.items()
        if (x := _position(row)) is not None
    ]
    return Chart(
        "Accuracy over trained parameters",
        "log10 of the trained share in percent",
        "accuracy",
        series,
        description="Mean and range over seeds; 2 is all, 0 is one percent. Methods that train nothing are left out.",
    )


def _position(row: Mapping[str, Any]) -> float | None:
    return math.log10(100 * row["trained_share"]) if row["trained_share"] > 0 else None
