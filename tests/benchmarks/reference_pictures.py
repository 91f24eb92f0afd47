"""Pictures of what benchmarks have measured, for the README. The only file that imports matplotlib."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")

from matplotlib import pyplot

from rlhf.evaluation.gold_proxy import curve_points, fit_curve
from tests.benchmarks.reference_curves import by_step, over
from tests.benchmarks.reference_summary import Part, Parts

BLUE, ORANGE, GREEN, GREY = "#0969b3", "#d1541a", "#06866a", "#77777f"
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#bbbbbb",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": "#eeeeee",
    "legend.frameon": False,
}


def draw_pictures(parts: Parts, folder: Path) -> None:
    """Writes the pictures for which there are parts."""
    with pyplot.rc_context(_STYLE):
        if world := parts["world"]:
            _save(_ppo_and_ptx(world), folder / "ppo-and-ptx.png")
            _save(_over_optimisation(world), folder / "over-optimisation.png")
            _save(_best_of_n(world), folder / "best-of-n.png")
        if sentiment := parts["sentiment"]:
            _save(_sentiment(sentiment), folder / "sentiment.png")


def draw_learning(sides: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Scores and KL by the step, ours and TRL's at each of its learning rates; bands are the range over seeds."""
    panels = (("objective/scores", "Proxy reward (trained on)"), ("objective/kl", "KL from SFT, nats"))
    colours = {"ours": BLUE, "trl_0.001": ORANGE, "trl_0.0003": GREY}
    with pyplot.rc_context(_STYLE):
        figure, axes = _panels(len(panels))
        for axis, (key, title) in zip(axes, panels, strict=True):
            for side, colour in colours.items():
                curves = [
                    [[float(step), value] for step, value in enumerate(run[key], 1)] for run in sides[side]["runs"]
                ]
                _band(axis, curves, side.replace("trl_", "TRL 1.12, rate "), colour)
            axis.set(title=title, xlabel="step")
        axes[0].legend()
        _save(figure, path)


def _ppo_and_ptx(parts: Sequence[Part]) -> Any:
    panels = (
        ("proxy", "Proxy reward (trained on)"),
        ("gold", "Gold reward (watched)"),
        ("kl", "KL from SFT, nats"),
        ("perplexity", "Perplexity on stories"),
    )
    figure, axes = _panels(len(panels))
    for axis, (key, title) in zip(axes, panels, strict=True):
        for run, label, colour in (("ppo", "PPO", BLUE), ("ppo_ptx", "PPO-ptx", ORANGE)):
            _band(axis, [part["curves"][run][key] for part in parts], label, colour)
        axis.set(title=title, xlabel="step")
    axes[-1].axhline(np.mean([part["outcome"]["sft"]["pretrain_ppl"] for part in parts]), color=GREY, ls="--", lw=1)
    axes[0].legend()
    return figure


def _over_optimisation(parts: Sequence[Part]) -> Any:
    figure, axes = _panels(len(parts), share=True)
    for axis, part in zip(axes, parts, strict=True):
        for key, label, colour in (("proxy", "proxy (trained on)", ORANGE), ("gold", "gold (watched)", BLUE)):
            kl, reward = (np.array(values) for values in over(part["curves"]["ppo_long"], "kl", key))
            axis.plot(np.sqrt(np.maximum(kl, 0)), reward, ".", color=colour, alpha=0.6, label=label)
            axis.plot(*curve_points(fit_curve(kl, reward, "rl"), kl.max()), color=colour, lw=1.6)
        axis.set(title=f"Seed {part['seed']}", xlabel="square root of the KL, nats")
    axes[0].set_ylabel("reward")
    axes[0].legend()
    return figure


def _best_of_n(parts: Sequence[Part]) -> Any:
    figure, axes = _panels(2)
    for axis, key, title in zip(axes, ("gold", "proxy"), ("Gold reward", "Proxy reward"), strict=True):
        for number, part in enumerate(parts):
            first = number == 0
            rows = part["evaluation"]["best_of_n"]
            bounds = [row["kl_bound"] for row in rows]
            means = [row["components"][key]["mean"] for row in rows]
            axis.plot(bounds, means, "o-", color=GREEN, ms=3, lw=1.2, label="best of 1 to 64" if first else None)
            kl, reward = over(part["curves"]["ppo_long"], "kl", key)
            early = [(x, y) for x, y in zip(kl, reward, strict=True) if x <= 2 * bounds[-1]]
            axis.plot(
                *zip(*early, strict=True), ".", color=BLUE, alpha=0.6, label="long PPO run, a step" if first else None
            )
        axis.set(title=title, xlabel="KL, nats (best of n: upper bound)", ylabel="reward")
    axes[0].legend()
    return figure


def _sentiment(parts: Sequence[Part]) -> Any:
    panels = (("proxy", "Reward model (trained on)"), ("gold", "Independent judge"), ("kl", "KL, nats"))
    figure, axes = _panels(len(panels))
    for axis, (key, title) in zip(axes, panels, strict=True):
        _band(axis, [part["curves"]["ppo"][key] for part in parts], "PPO", BLUE)
        axis.set(title=title, xlabel="step")
    return figure


def _band(axis: Any, curves: Sequence[list[list[float]]], label: str, colour: str) -> None:
    """Mean over seeds at the steps that all have, and the range as a band."""
    columns = [by_step(curve) for curve in curves]
    steps = sorted(set.intersection(*(set(column) for column in columns)))
    values = np.array([[column[step] for step in steps] for column in columns])
    axis.plot(steps, values.mean(axis=0), color=colour, lw=1.8, label=label)
    axis.fill_between(steps, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.15, lw=0)


def _panels(count: int, *, share: bool = False) -> tuple[Any, Any]:
    figure, axes = pyplot.subplots(
        1, count, figsize=(3.1 * count, 2.7), sharey=share, squeeze=False, layout="constrained"
    )
    return figure, axes[0]


def _save(figure: Any, path: Path) -> None:
    # Without software and date in the file, the same numbers give the same bytes.
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)
