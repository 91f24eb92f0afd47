"""report.html of `rlhf rounds`: what each round brought and was made from. Reads values, measures nothing."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rlhf.reports.charts import Chart, ReferenceLine, Series
from rlhf.reports.page import Cell, Headline, Link, ReportPage, Section, Table, Verdict
from rlhf.reports.record import record_sections
from rlhf.runtime.run_folder import RunFiles

_SHOWN_DIGITS = 12
_PROVENANCE = """What every step read and what it left, with the first digits of a checksum of its file or weights; all
checksums are in provenance.json."""


def is_rounds(summary: Mapping[str, Any]) -> bool:
    """Whether this is the summary of finished rounds."""
    return "rounds" in summary and "seconds_total" in summary


def rounds_page(root: Path, summary: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> ReportPage:
    """The whole page."""
    rounds: Mapping[str, Mapping[str, Any]] = summary["rounds"]
    pages = [*sorted(root.glob("round-*/*/report.html")), *root.glob("eval/report.html")]
    links = [Link(path.parent.relative_to(root).as_posix(), path.relative_to(root).as_posix()) for path in pages]
    return ReportPage(
        title=f"{len(rounds)} rounds of {root.name}",
        subtitle=f"Collect, rank, reward model, PPO, in {summary['seconds_total']:.0f} seconds.",
        verdicts=_verdicts(rounds),
        headlines=[Headline(f"win rate, {name}", one["win_rate"]) for name, one in rounds.items() if "win_rate" in one],
        sections=[
            Section("Rounds", tables=[_table(rounds)], charts=_charts(rounds)),
            Section("Provenance", " ".join(_PROVENANCE.split()), tables=[_provenance(records)]),
            Section("Stages", "Each stage has a page of its own.", links=links),
            *record_sections(RunFiles(root)),
        ],
    )


def _verdicts(rounds: Mapping[str, Mapping[str, Any]]) -> list[Verdict]:
    compared = [(name, one) for name, one in rounds.items() if "win_rate" in one]
    if len(compared) < 2:
        return []
    (before, earlier), (last, latest) = compared[-2:]
    # Intervals that do not overlap are a stricter test than a paired one, for which a round's wins would be needed.
    status: Literal["good", "warning"] = "warning"
    if latest["win_rate_low"] > earlier["win_rate_high"]:
        status, finding = "good", "another round has paid"
    elif latest["win_rate_high"] < earlier["win_rate_low"]:
        finding = "another round has cost"
    else:
        finding = "the 95 % intervals overlap, so another round is not shown to have paid or cost"
    rates = f"{last} wins {_share(latest)} of the comparisons with the start, {before} {_share(earlier)}"
    return [Verdict(f"{rates}: {finding}.", status)]


def _share(one: Mapping[str, Any]) -> str:
    return f"{one['win_rate']:.3f} ({one['win_rate_low']:.3f} to {one['win_rate_high']:.3f})"


def _table(rounds: Mapping[str, Mapping[str, Any]]) -> Table:
    keys = list(dict.fromkeys(key for one in rounds.values() for key in one))
    rows: list[list[Cell]] = [[name, *(one.get(key) for key in keys)] for name, one in rounds.items()]
    note = "Scores are those of each round's own reward model; KL is from the policy that the round began with."
    return Table(("", *(key.replace("_", " ") for key in keys)), rows, note=note)


def _charts(rounds: Mapping[str, Mapping[str, Any]]) -> list[Chart]:
    judged = {name: one for name, one in rounds.items() if "win_rate" in one}
    if not judged:
        return []
    places = list(range(len(judged)))
    y, low, high = ([one[f"win_rate{end}"] for one in judged.values()] for end in ("", "_low", "_high"))
    series = [Series("win rate", places, y, low, high, markers=True)]
    start = [ReferenceLine(0.5, "start")]
    words = "Against the start, with 95 % intervals over prompts."
    names = list(judged)
    return [Chart("Win rate by round", "round", "share", series, start, categories=names, description=words)]


def _provenance(records: Sequence[Mapping[str, Any]]) -> Table:
    rows: list[list[Cell]] = [
        [f"{one['round']}", one["step"], "; ".join(map(_short, one["inputs"])), _short(one["output"])]
        for one in records
    ]
    return Table(("round", "step", "from", "made"), rows)


def _short(item: Mapping[str, Any]) -> str:
    """Name and first digits: of one file its own, of a folder those of its weights."""
    checksums: Mapping[str, str] = item["checksums"]
    weights = [value for name, value in checksums.items() if name.endswith(".safetensors")]
    digits = next(iter([*weights, *checksums.values()]), "")[:_SHOWN_DIGITS]
    return f"{item['name']} {digits}".strip()
