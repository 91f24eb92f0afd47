"""What `rlhf rankings` tells at its end: a table on the terminal, and report.html.

Owns words and layout; every number comes from the outcome or the summary.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table as ConsoleTable

from reward.rankings.aggregation import RankedPrompt
from reward.rankings.agreement import SIGNIFICANCE
from reward.rankings.outcome import Outcome
from reward.rankings.raters import Rater
from reward.rankings.standings import Standing, Standings
from rlhf.reports.charts import Chart, ReferenceLine, Series
from rlhf.reports.page import Answer, Cell, Headline, Listing, ReportPage, Sample, Section, Table
from rlhf.reports.ranking_verdicts import shown_interval, verdicts_on
from rlhf.reports.record import record_sections, setting_sections
from rlhf.runtime.run_folder import RunFiles

Summary = Mapping[str, Any]

_SHOWN_ON_TERMINAL = 20
_SHOWN_MODELS = 60
_SHOWN_RATERS = 50
_SHOWN_PROMPTS = 6
_SHOWN_SKIPPED = 50
_CATEGORY_LETTERS = 44


def print_outcome(folder: Path, outcome: Outcome, summary: Summary) -> None:
    """Prints models with their intervals, what the raters are worth, and where everything lies."""
    console = Console(highlight=False)
    if outcome.standings is not None:
        console.print(_console_standings(outcome.standings.models))
    for verdict in verdicts_on(outcome, summary):
        console.print(verdict.text, style="yellow" if verdict.status == "warning" else "")
    where = [f"report {RunFiles(folder).report_path}"]
    if summary["written_file"]:
        where.insert(0, f"{summary['written_rows']} rows {folder / summary['written_file']}")
    console.print(", ".join(where), soft_wrap=True)


def rankings_page(folder: Path, outcome: Outcome, summary: Summary) -> ReportPage:
    """The page: what to conclude, models, raters, some ranked prompts, and what was skipped."""
    sections = [
        *setting_sections(RunFiles(folder)),
        *_standing_sections(outcome.standings, summary),
        *_rater_sections(outcome, summary),
        *_prompt_sections(outcome.ranked.prompts),
        *_skipped_sections(outcome),
        *record_sections(RunFiles(folder)),
    ]
    return ReportPage(
        title=f"Rankings of {folder.name}",
        subtitle=f"{summary['judgements']:,} judgements of {summary['responses']:,} responses to "
        f"{summary['prompts']:,} prompts.",
        verdicts=verdicts_on(outcome, summary),
        headlines=_headlines(outcome, summary),
        sections=sections,
        is_from_files=False,
    )


def _console_standings(models: Sequence[Standing]) -> ConsoleTable:
    rest = len(models) - _SHOWN_ON_TERMINAL
    table = ConsoleTable(box=SIMPLE, caption=f"and {rest} more in strengths.csv" if rest > 0 else None)
    table.add_column("model", no_wrap=True, overflow="ellipsis")
    for name in ("strength", "95 % Fisher", "95 % bootstrap", "rating", "Elo"):
        table.add_column(name, no_wrap=True, justify="right")
    for model in models[:_SHOWN_ON_TERMINAL]:
        table.add_row(
            model.model,
            f"{model.strength:+.2f}",
            _interval(model.fisher_low, model.fisher_high),
            _interval(model.bootstrap_low, model.bootstrap_high),
            f"{model.rating:.0f}",
            f"{model.elo:.0f}",
        )
    return table


def _interval(low: float | None, high: float | None) -> str:
    return "-" if low is None or high is None else f"{low:+.2f} to {high:+.2f}"


def _headlines(outcome: Outcome, summary: Summary) -> list[Headline]:
    found = [
        Headline("rows written", summary["written_rows"], summary["written_file"] or "the log keeps no texts"),
        Headline("judgements", summary["judgements"]),
    ]
    if summary["models"]:
        found.append(Headline("models", summary["models"]))
    if summary["raters"]:
        found.append(Headline("raters", summary["raters"]))
    if outcome.agreement is not None:
        found.append(
            Headline("Krippendorff's alpha", outcome.agreement.alpha, f"{outcome.agreement.questions} questions")
        )
    return found


def _standing_sections(table: Standings | None, summary: Summary) -> list[Section]:
    if table is None:
        return []
    fit = summary["fit"]
    method = {
        "bradley_terry": "Bradley-Terry on pairs, ties after Davidson",
        "plackett_luce": "Plackett-Luce on whole rankings, ties as unknown orders",
    }[fit["model"]]
    prior = (
        "maximum likelihood"
        if fit["prior_std"] is None
        else f"Gaussian prior of standard deviation {fit['prior_std']:g}"
    )
    ties = f" Tie parameter nu = {table.tie_parameter:.3g}." if table.tie_parameter is not None else ""
    text = (
        f"{method}; {prior}.{ties} Strengths are log-odds: of two models alone, one is preferred with probability "
        "sigmoid(difference); the rating is the same on Elo's scale.\n\nThe Fisher interval takes judgements to be "
        "independent, the bootstrap takes prompts to be: where several people judged the same responses, trust the "
        "bootstrap. Elo depends on the order of the games; shown are mean and spread over random orders."
    )
    charts = [_strength_chart(table.models), _elo_chart(table.models)]
    return [Section("Models", text, tables=[_standing_table(table.models)], charts=charts)]


def _standing_table(models: Sequence[Standing]) -> Table:
    columns = ("rank", "model", "strength", "Fisher from", "to", "bootstrap from", "to", "rating", "Elo", "Elo spread")
    rows: list[list[Cell]] = [
        [
            rank,
            model.model,
            *map(_rounded, (model.strength, model.fisher_low, model.fisher_high)),
            *map(_rounded, (model.bootstrap_low, model.bootstrap_high)),
            *map(round, (model.rating, model.elo, model.elo_spread)),
            model.wins,
            model.ties,
            model.losses,
        ]
        for rank, model in enumerate(models[:_SHOWN_MODELS], start=1)
    ]
    rest = len(models) - len(rows)
    note = "Pairs won, tied and lost count every vote alike; so does Elo."
    more = f" {rest} more in strengths.csv." if rest else ""
    return Table((*columns, "won", "tied", "lost"), rows, note=note + more)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _strength_chart(models: Sequence[Standing]) -> Chart:
    has_names = sum(len(model.model) for model in models) <= _CATEGORY_LETTERS
    places = [float(rank + (not has_names)) for rank in range(len(models))]
    ends = [shown_interval(model) for model in models]
    kind = "bootstrap" if models[0].bootstrap_low is not None else "Fisher"
    series = Series(
        "strength",
        places,
        [model.strength for model in models],
        low=[low for low, _ in ends],
        high=[high for _, high in ends],
        markers=True,
        line=False,
    )
    return Chart(
        "Strength of models",
        "" if has_names else "rank",
        "log-odds",
        [series],
        categories=[model.model for model in models] if has_names else (),
        description=f"Bars are 95 % {kind} intervals.",
    )


def _elo_chart(models: Sequence[Standing]) -> Chart:
    ratings, elo = [model.rating for model in models], [model.elo for model in models]
    series = Series(
        "models",
        ratings,
        elo,
        low=[model.elo - 2 * model.elo_spread for model in models],
        high=[model.elo + 2 * model.elo_spread for model in models],
        markers=True,
        line=False,
    )
    return Chart(
        "Elo against the fit",
        "fitted rating",
        "Elo rating",
        [series],
        description="Bars are two standard deviations over random orders. Ties, half a win to Elo, narrow its scale.",
    )


def _rater_sections(outcome: Outcome, summary: Summary) -> list[Section]:
    raters = sorted(outcome.raters.raters, key=_conspicuous)
    if not raters:
        return []
    text = (
        "Agreement is the share of questions (pairs of items) that a rater answered like the majority of the others, "
        "each prompt counted once; expected is that of all other raters. p is the probability of so little agreement "
        "if the rater were like the others (Fisher's exact test); who disagrees is significant at "
        f"{SIGNIFICANCE:.0%} after Benjamini and Hochberg's correction for {summary['raters']} raters."
    )
    if outcome.agreement is not None:
        text += (
            "\n\nKrippendorff's alpha is 1 where raters agree always, 0 where they agree as chance would have it. It "
            f"was computed on {outcome.agreement.questions:,} pairs that at least two of them judged."
        )
    return [Section("Raters", text, tables=[_rater_table(raters)], charts=_rater_charts(raters))]


def _conspicuous(rater: Rater) -> tuple[bool, float]:
    """Sort key: who disagrees first, then by p."""
    found = rater.agreement
    return not found.disagrees, 2.0 if found.p_value is None else found.p_value


def _rater_table(raters: Sequence[Rater]) -> Table:
    columns = ("rater", "judgements", "weight", "reliability", "prompts", "agreement", "expected", "p", "disagrees")
    rows: list[list[Cell]] = [
        [
            rater.name,
            rater.judgements,
            *map(_rounded, (rater.weight, rater.reliability)),
            rater.agreement.prompts,
            *map(_rounded, (rater.agreement.agreement, rater.agreement.expected)),
            rater.agreement.p_value,
            "yes" if rater.agreement.disagrees else "",
        ]
        for rater in raters[:_SHOWN_RATERS]
    ]
    rest = len(raters) - len(rows)
    return Table(columns, rows, note=f"{rest} more in raters.csv." if rest else "")


def _rater_charts(raters: Sequence[Rater]) -> list[Chart]:
    known = sorted(
        (rater.agreement.agreement for rater in raters if rater.agreement.agreement is not None), reverse=True
    )
    if len(known) < 2:
        return []
    series = Series("raters", [float(place + 1) for place in range(len(known))], known, markers=True, line=False)
    references = [ReferenceLine(0.5, "chance")]
    title = "Agreement with the majority of the others"
    return [Chart(title, "rater, most agreeing first", "share of questions", [series], references)]


def _prompt_sections(prompts: Sequence[RankedPrompt]) -> list[Section]:
    if not prompts:
        return []
    samples = [_sample(found) for found in prompts[:_SHOWN_PROMPTS]]
    text = (
        "The first prompts, with their responses as ranked: strength in log-odds, or the score where rows hold scores."
    )
    return [Section("Ranked responses", text, samples=samples)]


def _sample(found: RankedPrompt) -> Sample:
    answers: list[Answer] = []
    for rank, group in enumerate(found.ranking, start=1):
        for place in group:
            name = f"{rank}. {found.models[place]}" if found.models[place] else f"{rank}."
            answers.append(Answer(name, found.responses[place], {"strength": float(found.strengths[place])}))
    return Sample(_as_text(found.prompt), answers)


def _as_text(prompt: object) -> str:
    """A prompt, or a conversation as one line a turn."""
    if isinstance(prompt, list):
        return "\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)
    return str(prompt)


def _skipped_sections(outcome: Outcome) -> list[Section]:
    if not outcome.judged.skipped:
        return []
    lines = outcome.judged.skipped[:_SHOWN_SKIPPED]
    listing = Listing(f"Skipped rows ({len(lines)} of {len(outcome.judged.skipped)})", "\n".join(lines))
    return [Section("Skipped", "Rows that could not be read.", listings=[listing])]
