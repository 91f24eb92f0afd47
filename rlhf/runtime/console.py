"""One readable line a step on the terminal: a few numbers per stage, in columns. Owns no numbers and no files."""

from collections.abc import Mapping, Sequence
from typing import IO

from rich.console import Console
from rich.text import Text

from rlhf.runtime.health.rule import Alert
from rlhf.runtime.metric_registry import format_value

# Per stage, what a person watches while it runs: metric and its short label.
CONSOLE_COLUMNS: dict[str, tuple[tuple[str, str], ...]] = {
    "pretrain": (
        ("loss/train", "loss"),
        ("eval/perplexity", "held-out ppl"),
        ("progress/lr", "lr"),
        ("perf/tokens_per_s", "tokens/s"),
        ("time/step", "s"),
    ),
    "text-to-text": (
        ("loss/train", "loss"),
        ("eval/perplexity", "held-out ppl"),
        ("progress/lr", "lr"),
        ("perf/tokens_per_s", "tokens/s"),
        ("time/step", "s"),
    ),
    "sft": (
        ("loss/train", "loss"),
        ("eval/loss", "held-out loss"),
        ("progress/lr", "lr"),
        ("perf/tokens_per_s", "tokens/s"),
        ("time/step", "s"),
    ),
    "reward": (
        ("rm/loss", "loss"),
        ("rm/accuracy", "accuracy"),
        ("rm/margin", "margin"),
        ("rm/eval_accuracy", "held-out accuracy"),
        ("time/step", "s"),
    ),
    "dpo": (
        ("rm/loss", "loss"),
        ("rm/accuracy", "accuracy"),
        ("rm/margin", "margin"),
        ("rm/eval_accuracy", "held-out accuracy"),
        ("time/step", "s"),
    ),
    "ppo": (
        ("objective/scores", "score"),
        ("objective/kl", "kl"),
        ("objective/rlhf_reward", "reward"),
        ("policy/clipfrac", "clipped"),
        ("critic/explained_var", "critic"),
        ("rollout/response_length_mean", "length"),
        ("time/step", "s"),
    ),
    "eval": (
        ("eval/win_rate", "win rate"),
        ("eval/kl", "kl"),
        ("eval/score", "score"),
        ("time/step", "s"),
    ),
    "distill": (
        ("loss/train", "loss"),
        ("eval/teacher_kl", "held-out kl"),
        ("eval/score_error", "score error"),
        ("progress/lr", "lr"),
        ("time/step", "s"),
    ),
    "classify": (
        ("loss/train", "loss"),
        ("eval/accuracy", "held-out accuracy"),
        ("progress/lr", "lr"),
        ("time/step", "s"),
    ),
    "generate": (
        ("rollout/response_length_mean", "length"),
        ("rollout/eos_rate", "ended"),
        ("time/step", "s"),
    ),
}
_VALUE_WIDTH = 8


class ConsoleSink:
    """Prints `<stage> <step>/<total>  <label> <value> ...`; a number that this step lacks is a dash.

    Plain text when the output is a file or a pipe; labels dimmed and non-finite values red on a terminal.

    Args:
        stage: A key of `CONSOLE_COLUMNS`.
        total_steps: Last step of the run.
        output: Stream to print to; None is standard output.
    """

    def __init__(self, stage: str, total_steps: int, output: IO[str] | None = None) -> None:
        self._stage = stage
        self._total_steps = total_steps
        self._columns = CONSOLE_COLUMNS[stage]
        self._console = Console(file=output, highlight=False)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Prints the line of one step."""
        width = len(str(self._total_steps))
        line = Text.assemble((self._stage, "bold"), f" {step:>{width}}/{self._total_steps}")
        for key, label in self._columns:
            line.append(f"  {label} ", style="dim")
            line.append_text(_value_text(metrics.get(key)))
        # A wrapped line would break the columns, a cropped one lose numbers from a log file.
        self._console.print(line, soft_wrap=True)

    def log_samples(self, step: int, rows: Sequence[Mapping[str, object]]) -> None:
        """Prints nothing: samples are read in samples.jsonl, the report or W&B."""

    def log_alert(self, alert: Alert) -> None:
        """Prints one line, below that of its step."""
        self._console.print(alert_text(self._stage, alert), soft_wrap=True)

    def close(self, summary: Mapping[str, object], *, failed: bool) -> None:
        """Prints nothing: the stage has the last word."""


def alert_text(stage: str, alert: Alert) -> Text:
    """`<stage> warning at step 12 (kl_runaway): what was found. What to do.`, on one line."""
    color = "bold red" if alert.severity == "error" else "bold yellow"
    head = (f"{stage} {alert.severity} at step {alert.step}", color)
    return Text.assemble(head, f" ({alert.rule}): {alert.finding}. ", (alert.remedy, "dim"))


def _value_text(value: float | None) -> Text:
    if value is None:
        return Text(f"{'-':>{_VALUE_WIDTH}}", style="dim")
    text = format_value(value)
    return Text(f"{text:>{_VALUE_WIDTH}}", style="bold red" if text in {"NaN", "inf", "-inf"} else "")
