"""What a practitioner watches, in which order: sections of plots over the documented metrics.

Owns the selection. A metric that no plot names follows at the end of its section, so that none is invisible. Knows
nothing of W&B.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from rlhf.runtime.metric_registry import METRICS
from rlhf.runtime.sinks.weights_and_biases import STEP_AXIS


@dataclass(frozen=True, slots=True)
class Plot:
    """Curves over the steps of a run.

    Attributes:
        metrics: Documented keys, drawn over each other.
        title: What is seen; empty takes key and unit of the single metric.
        family: In place of `metrics`, a pattern for the members of a metric family.
        is_log: Logarithmic vertical axis.
        x: Metric of the horizontal axis.
        is_stacked: Areas on top of each other: parts of a whole.
    """

    metrics: tuple[str, ...] = ()
    title: str = ""
    family: str = ""
    is_log: bool = False
    x: str = STEP_AXIS
    is_stacked: bool = False

    @property
    def heading(self) -> str:
        """The title, or what it stands for."""
        unit = "" if self.title else METRICS[self.metrics[0]].unit
        return self.title or f"{self.metrics[0]}{f' [{unit}]' if unit not in ('', '1') else ''}"


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page.

    Attributes:
        name: Its heading.
        covers: Prefixes of the keys that belong here.
        plots: In the order of reading.
        is_open: Unfolded at first.
    """

    name: str
    covers: tuple[str, ...]
    plots: tuple[Plot, ...]
    is_open: bool = False


FRONTIER = Plot(("objective/scores",), "Score against KL: what each nat buys", x="objective/kl")

_SECTIONS = (
    Section(
        "objective",
        ("objective/", "reward/"),
        (
            Plot(("objective/scores", "objective/rlhf_reward"), "Score, and what PPO maximises [reward]"),
            Plot(("objective/kl",)),
            FRONTIER,
            Plot(family="reward/[^/]+", title="Every score component [reward]"),
            Plot(("objective/scores_std",)),
            Plot(("objective/kl_coef",)),
            Plot(("objective/score_length_correlation",)),
            Plot(family="reward/.+/disagreement", title="Disagreement of reward ensembles [reward]"),
            Plot(family="reward/.+/failed", title="Responses without a score [responses]"),
        ),
        is_open=True,
    ),
    Section(
        "policy",
        ("policy/", "loss/train", "loss/policy", "loss/ptx", "loss/retention"),
        (
            Plot(("policy/approxkl", "policy/approxkl_k3"), "Size of an update: approximate KL [nats per token]"),
            Plot(("policy/clipfrac", "policy/dual_clipfrac"), "Tokens that the clip bounds [share]"),
            Plot(("policy/entropy",)),
            Plot(("policy/first_step_ratio_error",), is_log=True),
            Plot(("policy/ratio_max", "policy/ratio_mean"), "Probability ratios", is_log=True),
            Plot(("loss/policy",)),
            Plot(("policy/grad_norm",), is_log=True),
            Plot(("policy/lr",)),
            Plot(("loss/ptx",)),
            Plot(("policy/ptx_gradient_ratio",)),
            Plot(("loss/train",)),
            Plot(("loss/retention",)),
        ),
        is_open=True,
    ),
    Section(
        "critic",
        ("critic/", "loss/value"),
        (
            Plot(("critic/explained_var",)),
            Plot(("critic/value_mean", "critic/return_mean"), "Values and the returns they predict [reward]"),
            Plot(("loss/value",), is_log=True),
            Plot(("critic/clipfrac",)),
            Plot(("critic/grad_norm",), is_log=True),
        ),
    ),
    Section(
        "rollout",
        ("rollout/",),
        (
            Plot(("rollout/response_length_mean", "rollout/response_length_max"), "Length of responses [tokens]"),
            Plot(("rollout/eos_rate", "rollout/truncated_rate"), "Responses that end, and that are cut off [share]"),
            Plot(("rollout/dropped", "rollout/stale"), "Responses that are lost [responses]"),
            Plot(("rollout/policy_age",)),
            Plot(("rollout/restarts", "rollout/retries"), "Workers restarted, calls repeated"),
        ),
    ),
    Section(
        "sync",
        ("sync/",),
        (Plot(("sync/canary_max_logprob_diff",), is_log=True), Plot(("sync/version",)), Plot(("sync/bytes",))),
    ),
    Section(
        "reward model",
        ("rm/",),
        (
            Plot(("rm/eval_accuracy", "rm/eval_accuracy_low", "rm/eval_accuracy_high"), "Held-out accuracy, 95 %"),
            Plot(("rm/loss", "rm/eval_loss"), "Loss, training and held out [nats]"),
            Plot(("rm/accuracy",)),
            Plot(("rm/margin", "rm/eval_margin"), "Margin, training and held out [reward]"),
        ),
    ),
    Section(
        "evaluation",
        ("eval/",),
        (
            Plot(("eval/win_rate", "eval/win_rate_low", "eval/win_rate_high"), "Win rate, 95 % [share]"),
            Plot(("eval/score",)),
            Plot(("eval/proxy_score", "eval/gold_score"), "Proxy and gold score: over-optimisation [reward]"),
            Plot(("eval/pretrain_perplexity",)),
            Plot(("eval/perplexity",)),
            Plot(("eval/loss",)),
            Plot(family="eval/[^/]+/[^/]+", title="Each model or judge by itself"),
        ),
    ),
    Section(
        "performance",
        ("perf/", "time/", "progress/"),
        (
            Plot(("perf/samples_per_s",)),
            Plot(("perf/tokens_per_s",)),
            Plot(
                ("time/rollout_wait", "time/score", "time/experience", "time/update", "time/sync", "time/eval"),
                "Where a step's time goes [s]",
                is_stacked=True,
            ),
            Plot(("time/step",)),
            Plot(("perf/peak_memory_mib",)),
            Plot(("perf/padding_waste",)),
        ),
    ),
)


def dashboard_sections() -> tuple[Section, ...]:
    """The sections, each with the plots of its remaining metrics at the end."""
    return tuple(
        Section(section.name, section.covers, (*section.plots, *_remaining(section)), section.is_open)
        for section in _SECTIONS
    )


def _remaining(section: Section) -> Iterator[Plot]:
    shown = {key for plot in section.plots for key in plot.metrics} | {STEP_AXIS}
    return (Plot((key,)) for key in METRICS if key.startswith(section.covers) and key not in shown)
