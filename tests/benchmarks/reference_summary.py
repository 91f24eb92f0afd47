"""The numbers of a reference, over its seeds, beside those of another."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from rlhf.evaluation.gold_proxy import GoldPeak, find_peak
from tests.benchmarks.reference_curves import over

Part = Mapping[str, Any]
Parts = Mapping[str, Sequence[Part]]
KINDS = ("world", "sentiment")


def read_parts(folder: Path) -> dict[str, list[Part]]:
    """The parts that are there, by kind, in the order of their seeds."""
    return {
        kind: sorted(
            (json.loads(path.read_text(encoding="utf-8")) for path in folder.glob(f"{kind}-*.json")),
            key=lambda part: part["seed"],
        )
        for kind in KINDS
    }


def peak_of(part: Part, run: str = "ppo_long") -> GoldPeak:
    """Where the watched reward of a run peaks over its KL (Gao et al. 2023)."""
    kl, gold = over(part["curves"][run], "kl", "gold")
    return find_peak(np.array(kl), np.array(gold), "rl")


def gold_at(part: Part, kl: float, run: str = "ppo_long") -> float | None:
    """Gold reward that a run's fit has at a KL, from its first steps up to twice that KL; None beyond its reach."""
    distances, gold = (np.array(values) for values in over(part["curves"][run], "kl", "gold"))
    if distances.max() < kl:
        return None
    near = distances <= max(2 * kl, 1.0)
    order = np.argsort(distances[near])
    return float(np.interp(kl, distances[near][order], _smooth(gold[near][order])))


def numbers_of(kind: str, part: Part) -> dict[str, float]:
    """What is compared of one seed."""
    evaluation = part["evaluation"]
    if kind == "sentiment":
        return {
            "judge's gain, log-odds": evaluation["gain"],
            "KL, nats": evaluation["kl"],
            "perplexity before": evaluation["baseline"]["pretrain_ppl"],
            "perplexity after": evaluation["candidate"]["pretrain_ppl"],
        }
    outcome, peak = part["outcome"], peak_of(part)
    named = (("proxy", "proxy_reward"), ("gold", "gold_reward"), ("win rate", "gold_win_rate"), ("KL", "kl"))
    rows = {
        f"{name} {label}": outcome[name][key]
        for name in ("sft", "ppo", "ppo_ptx")
        for label, key in (*named, ("perplexity", "pretrain_ppl"))
    }
    last = {row["n"]: row for row in evaluation["best_of_n"]}[64]
    return rows | {
        "KL at the peak of gold, long run": peak.kl if peak.is_passed else float("nan"),
        "gold lost after the peak, long run": peak.lost,
        "best of 64 gold": last["components"]["gold"]["mean"],
        "best of 64 KL bound": last["kl_bound"],
        "PPO gold at that KL": float("nan") if (gold := gold_at(part, last["kl_bound"])) is None else gold,
    }


def comparison_lines(here: Parts, stored: Parts) -> list[str]:
    """A line a number: mean and range over seeds, here and as stored."""
    lines = ["", f"{'':40}{'here':>30}{'stored':>30}"]
    for kind in KINDS:
        if here[kind]:
            columns = [[numbers_of(kind, part) for part in parts[kind]] for parts in (here, stored)]
            lines.append(f"{kind}: {len(columns[0])} seeds here, {len(columns[1])} stored")
            lines += [f"  {name:38}{_over(columns[0], name)}{_over(columns[1], name)}" for name in columns[0][0]]
    return lines


def _over(rows: Sequence[Mapping[str, float]], name: str) -> str:
    values = [row[name] for row in rows if np.isfinite(row[name])]
    text = f"{mean(values):.3g} ({min(values):.3g} to {max(values):.3g})" if values else "-"
    return f"{text:>30}"


def _smooth(values: np.ndarray, window: int = 5) -> np.ndarray:
    """Mean over neighbours; fewer at the ends."""
    half = window // 2
    return np.array([values[max(i - half, 0) : i + half + 1].mean() for i in range(len(values))])
