"""The quickstart's report: the table, the curves and the answers that a newcomer should see.

Owns the page's content; drawing is `rlhf.reports.page`'s and `rlhf.reports.charts`' business.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rlhf.quickstart.outcome import Outcomes
from rlhf.quickstart.recipe import Layout
from rlhf.reports.charts import Chart, Series
from rlhf.reports.health import alerts_in, health_verdicts
from rlhf.reports.page import Answer, Headline, Link, ReportPage, Sample, Section, Table, Verdict
from rlhf.reports.record import record_sections
from rlhf.runtime.run_folder import RunFiles

TITLES = {"sft": "SFT", "ppo": "PPO", "ppo_ptx": "PPO-ptx"}
COLUMNS = ("", "proxy", "gold", "gold win rate", "95 % interval", "KL", "story ppl")
NOTE = (
    "Proxy reward: the learned reward model's score, 0 for the average SFT answer. Gold reward: the hidden preference "
    "that the simulated labelers followed, from -3 to 4. Win rate: how often an answer beats a fresh SFT answer to the "
    "same question by gold reward, ties half. KL: how far the policy moved from SFT, per answer. Perplexity: on "
    "held-out pretraining text; what rises there is the alignment tax."
)


def outcome_rows(outcomes: Outcomes) -> list[tuple[str | float, ...]]:
    """The table's rows, in the order of `COLUMNS`."""
    return [
        (
            TITLES[outcome.name],
            outcome.numbers["proxy_reward"],
            outcome.numbers["gold_reward"],
            outcome.numbers["gold_win_rate"],
            f"{outcome.numbers['gold_win_rate_low']:.2f} to {outcome.numbers['gold_win_rate_high']:.2f}",
            round(outcome.numbers["kl"], 2) + 0.0,  # A policy against itself is 0, not -1e-7.
            outcome.numbers["pretrain_ppl"],
        )
        for outcome in outcomes.policies
    ]


def quickstart_page(layout: Layout, outcomes: Outcomes, summary: Mapping[str, Any]) -> ReportPage:
    """The whole page."""
    curves = {name: RunFiles(layout.stage(name)).read_metrics() for name in ("ppo", "ppo_ptx")}
    last = summary["ppo_ptx"]
    return ReportPage(
        title="Quickstart: from random weights to an aligned model",
        subtitle=f"Pretraining, SFT, reward model, PPO and PPO-ptx in {summary['seconds_total']:.0f} seconds.",
        verdicts=[*_verdicts(summary), *_health(layout)],
        headlines=[
            Headline(
                "gold win rate of PPO-ptx",
                last["gold_win_rate"],
                f"{last['gold_win_rate_low']:.2f} to {last['gold_win_rate_high']:.2f}",
            ),
            Headline("gold reward, SFT", summary["sft"]["gold_reward"]),
            Headline("gold reward, PPO-ptx", last["gold_reward"]),
            Headline("KL of PPO-ptx", last["kl"], "nats per answer"),
        ],
        sections=[
            Section("Result", tables=[Table(COLUMNS, outcome_rows(outcomes), note=NOTE)]),
            Section(
                "Before and after",
                "Three questions at the quartiles of the gain: neither the best nor the worst cases.",
                samples=_samples(outcomes),
            ),
            Section("Training", _TRAINING, charts=_charts(curves)),
            Section("Time", tables=[Table(("stage", "seconds"), list(summary["seconds"].items()))]),
            Section("Stages", "Each stage has a page of its own.", links=_stage_pages(layout)),
            *record_sections(RunFiles(layout.root)),
        ],
        is_from_files=False,
    )


def _stage_pages(layout: Layout) -> list[Link]:
    """The reports of the stages, as far as they are there."""
    pages = (RunFiles(layout.stage(name)).report_path for name in ("pretrain", "sft", "reward", "ppo", "ppo_ptx"))
    return [Link(path.parent.name, path.relative_to(layout.root).as_posix()) for path in pages if path.exists()]


_TRAINING = (
    "The policy is trained on the proxy alone; gold is only watched. Where the proxy goes on rising and gold does not, "
    "the policy exploits the reward model: over-optimisation (Gao et al. 2023). The pretraining mix of PPO-ptx holds "
    "the perplexity down."
)


def _verdicts(summary: Mapping[str, Any]) -> list[Verdict]:
    tuned, plain, start = summary["ppo_ptx"], summary["ppo"], summary["sft"]
    better = tuned["gold_win_rate_low"] > 0.5
    tax, plain_tax = (run["pretrain_ppl"] / start["pretrain_ppl"] - 1 for run in (tuned, plain))
    return [
        Verdict(
            f"PPO-ptx answers {'beat' if better else 'do not clearly beat'} SFT answers by the gold reward: "
            f"win rate {tuned['gold_win_rate']:.2f}.",
            "good" if better else "bad",
        ),
        Verdict(
            f"Alignment tax: perplexity on stories {tax:+.1%} with the pretraining mix, {plain_tax:+.1%} without.",
            "good" if tax <= 0.05 else "warning",
        ),
    ]


def _health(layout: Layout) -> list[Verdict]:
    return [
        replace(verdict, text=f"{title}: {verdict.text}")
        for name, title in TITLES.items()
        for verdict in health_verdicts(alerts_in(RunFiles(layout.stage(name))))
    ]


def _samples(outcomes: Outcomes) -> list[Sample]:
    return [
        Sample(
            outcomes.prompts[index],
            [
                Answer(TITLES[policy.name], policy.answers[index].strip(), {"gold": round(policy.gold[index], 2)})
                for policy in (outcomes.policies[0], outcomes.policies[-1])
            ],
        )
        for index in outcomes.shown
    ]


def _charts(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Chart]:
    def line(key: str, x_key: str = "step") -> list[Series]:
        return [_series(TITLES[name], rows, x_key, key) for name, rows in curves.items()]

    gold_against_proxy = [
        Series(series.name, series.x, series.y, markers=True, line=False)
        for series in line("reward/gold", "reward/proxy")
    ]
    return [
        Chart("Proxy reward", "step", "reward", line("reward/proxy")),
        Chart("Gold reward", "step", "reward", line("reward/gold")),
        Chart("KL to the SFT model", "step", "nats per answer", line("objective/kl")),
        Chart("Gold against proxy", "proxy reward", "gold reward", gold_against_proxy),
        Chart("Perplexity on held-out stories", "step", "", line("eval/pretrain_perplexity")),
        Chart("Answer length", "step", "tokens", line("rollout/response_length_mean")),
    ]


def _series(name: str, rows: Sequence[Mapping[str, Any]], x_key: str, y_key: str) -> Series:
    logged = [row for row in rows if x_key in row and y_key in row]
    return Series(name, [row[x_key] for row in logged], [row[y_key] for row in logged])
