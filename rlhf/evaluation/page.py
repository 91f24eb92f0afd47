"""report.html of an evaluation: verdict, setting, who wins by which judge, where to stop, what it cost, the answers.

Owns the order and the tables; charts are `page_charts`, sentences `verdicts`. Reads a run folder only, so that
`rlhf report` writes the same page again.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from rlhf.evaluation.page_charts import best_of_n_charts, model_charts, task_chart, win_rate_chart
from rlhf.evaluation.verdicts import verdicts_on
from rlhf.reports.page import Answer, Cell, Headline, ReportPage, Sample, Section, Table
from rlhf.reports.record import record_sections
from rlhf.reports.samples import word_diff
from rlhf.runtime.run_folder import Row, RunFiles

Summary = Mapping[str, Any]

_SHOWN_ANSWERS = 12
_SEEN = "prompts_seen_in_training"
_PERPLEXITY = "perplexity on held-out text"


def evaluation_page(run_folder_path: str | Path) -> ReportPage:
    """The page of a finished evaluation."""
    files = RunFiles(run_folder_path)
    summary, config = cast(Summary, files.read_summary()), cast(Summary, files.read_config())
    return ReportPage(
        title=f"Evaluation of {_model(config['model'])}",
        subtitle=f"Against {_model(config['baseline'])}, on {summary['prompts']} prompts.",
        verdicts=verdicts_on(summary),
        headlines=_headlines(summary),
        sections=[
            _setting(config, summary),
            _judges(summary),
            *_best_of_n(summary, str(config["proxy"])),
            *_models(summary, config["proxy"]),
            *_cost(summary),
            _answers(files.read_samples()),
            *record_sections(files),
        ],
    )


def is_evaluation(summary: Summary) -> bool:
    """Whether a summary is one of `rlhf eval`."""
    return {"candidate", "baseline", "judges", "length_controlled_win_rate"} <= summary.keys()


def _headlines(summary: Summary) -> list[Headline]:
    ppl = [summary[side]["pretrain_ppl"] for side in ("baseline", "candidate")]
    tax = [] if None in ppl else [Headline(_PERPLEXITY, ppl[1], f"{ppl[0]:.3f} before")]
    return [
        Headline("win rate", summary["win_rate"], _ends(summary, "win_rate")),
        Headline(
            "win rate at equal length",
            summary["length_controlled_win_rate"],
            _ends(summary, "length_controlled_win_rate"),
        ),
        Headline("gain in score", summary["gain"], _ends(summary, "gain")),
        Headline("KL", summary["kl"], "nats an answer, from the baseline"),
        *tax,
    ]


def _setting(config: Summary, summary: Summary) -> Section:
    sampling = config["sampling"]
    judges = [f"{one['kind']} {one.get('name') or ''}".strip() for one in (*config["reward"], *config["judges"])]
    rows: list[list[Cell]] = [
        ["candidate", _model(config["model"])],
        ["baseline", _model(config["baseline"])],
        *([["further models", ", ".join(map(_model, config["models"]))]] if config["models"] else []),
        ["prompts", f"{summary['prompts']} of {config['data']['eval']}"],
        ["answers to each", str(config["responses_per_prompt"])],
        ["sampling", f"temperature {sampling['temperature']}, at most {sampling['max_response_tokens']} tokens"],
        ["judges", ", ".join(judges)],
        ["trained on", str(config["proxy"] or "not named")],
        ["seed", str(config["seed"])],
        *([["prompts also in training", str(summary[_SEEN])]] if _SEEN in summary else []),
    ]
    return Section("Setting", tables=[Table(("", ""), rows)])


def _judges(summary: Summary) -> Section:
    columns = ("judge", "win rate", "95 %", "at equal length", "95 %", "ties", "lost pairs", "gain", "orders agree")
    rows: list[list[Cell]] = [
        [
            name,
            one["win_rate"],
            _ends(one, "win_rate"),
            one["length_controlled_win_rate"],
            _ends(one, "length_controlled_win_rate"),
            one["ties"],
            one["lost_pairs"],
            one.get("gain"),
            one.get("consistency"),
        ]
        for name, one in summary["judges"].items()
    ]
    text = (
        "Share of comparisons that the candidate wins; ties count half, every prompt once, intervals resample prompts. "
        "Judges that compare are asked in both orders, and a verdict that turns with the order is a tie.\n\n"
        "At equal length: a logistic regression of the outcome on the difference in length, read where it is zero "
        "(after Dubois et al. 2024)."
    )
    sides = Table(
        ("", "score", "spread", "tokens an answer", "ended by itself", _PERPLEXITY),
        [
            [
                side,
                *(summary[side][key] for key in ("score", "score_std", "response_length_mean", "eos_rate")),
                summary[side]["pretrain_ppl"],
            ]
            for side in ("candidate", "baseline")
        ],
    )
    return Section("Who wins", text, [Table(columns, rows), sides], [win_rate_chart(summary["judges"])])


def _best_of_n(summary: Summary, proxy: str) -> list[Section]:
    rows = summary.get("best_of_n")
    if not rows:
        return []
    names = list(rows[0]["components"])
    table = Table(
        ("n", "KL bound", "win rate", "95 %", *names),
        [
            [
                str(one["n"]),
                one["kl_bound"],
                one["win_rate"],
                _ends(one, "win_rate"),
                *(one["components"][name]["mean"] for name in names),
            ]
            for one in rows
        ],
        note="KL bound: log n - (n - 1) / n nats, the usual formula and an upper bound (Beirami et al. 2024).",
    )
    text = (
        f"The baseline samples n answers and keeps the one that {proxy} scores highest: what any training has to beat. "
        "Every n is estimated without bias from one set of samples."
    )
    return [Section("Best of n", text, [table], best_of_n_charts(rows, summary, proxy))]


def _models(summary: Summary, proxy: str | None) -> list[Section]:
    models = summary.get("models")
    if not models:
        return []
    names = list(summary["candidate"]["components"])
    table = Table(
        ("model", "KL", "win rate", "95 %", *names, _PERPLEXITY),
        [
            [
                name,
                one["kl"],
                one["win_rate"],
                _ends(one, "win_rate"),
                *(one["components"][judge] for judge in names),
                one["pretrain_ppl"],
            ]
            for name, one in models.items()
        ],
    )
    text = (
        "What each model gains for the distance that it went, in nats an answer from the baseline. Of two models at "
        "the same distance the higher is trained better; where a judge falls while the proxy rises, it is exploited."
    )
    return [Section("Reward over KL", text, [table], model_charts(models, summary.get("gold_peaks", ()), proxy))]


def _cost(summary: Summary) -> list[Section]:
    tasks = summary.get("tasks")
    if not tasks:
        return []
    columns = ("task", "shots", "measure", "questions", "before", "after", "difference", "95 %", "finding")
    words = {"below": "forgotten", "above": "better", "undecided": "within noise"}
    rows: list[list[Cell]] = [
        [
            one["task"],
            str(one["shots"]),
            one["measure"],
            str(one["questions"]),
            one["before"],
            one["after"],
            one["difference"],
            _ends(one, "difference"),
            words[one["finding"]],
        ]
        for one in tasks
    ]
    text = (
        "Share of questions answered rightly by the baseline and by the candidate. Multiple choice takes the choice of "
        "the highest log-prob, summed (sum) or per token (mean); free answers are compared as a whole (exact). "
        "Intervals resample questions, with both models on each."
    )
    return [Section("Alignment tax", text, [Table(columns, rows)], [task_chart(tasks)])]


def _answers(rows: Sequence[Row]) -> Section:
    """Answers side by side, from the best gain to the worst, evenly: neither side's best cases."""
    order = sorted(rows, key=lambda row: -_gain(row))
    stride = max(1, len(order) // _SHOWN_ANSWERS)
    text = (
        "Baseline and candidate on the same prompts, spread evenly from the largest gain in score to the largest loss; "
        "words that only one of them has are marked."
    )
    return Section("Answers", text, samples=[_sample(row) for row in order[::stride][:_SHOWN_ANSWERS]])


def _gain(row: Row) -> float:
    gain = float(cast(float, row["score"])) - float(cast(float, row["baseline_score"]))
    return gain if math.isfinite(gain) else 0.0


def _sample(row: Row) -> Sample:
    before, after = str(row["baseline_response"]), str(row["response"])
    removed, added = word_diff(before, after)
    scores = ({"score": float(cast(float, row[key]))} for key in ("baseline_score", "score"))
    old, new = cast(tuple[dict[str, Cell], dict[str, Cell]], tuple(scores))
    verdicts = {
        key.removeprefix("outcome_"): _outcome(value) for key, value in row.items() if key.startswith("outcome_")
    }
    return Sample(
        str(row["prompt"]), [Answer("before", before, old, removed), Answer("after", after, new | verdicts, added)]
    )


def _outcome(value: object) -> Cell:
    return {1.0: "wins", 0.5: "tie", 0.0: "loses"}.get(cast(float, value), "no verdict")


def _model(config: Mapping[str, Any]) -> str:
    return str(config["path"])


def _ends(numbers: Mapping[str, Any], name: str) -> str:
    return f"{numbers[f'{name}_low']:.3f} to {numbers[f'{name}_high']:.3f}"
