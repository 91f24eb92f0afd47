"""The sentences in which rules say what they measured, so that the same thing reads the same everywhere."""

from rlhf.runtime.metric_registry import format_value


def above_limit(key: str, value: float, limit: float, steps: int = 1) -> str:
    """`value`, a mean over `steps`, is above `limit`."""
    return f"{_measured(key, value, steps)}, above {format_value(limit, trim=True)}"


def since_start(key: str, value: float, first: float, steps: int) -> str:
    """`value`, a mean over `steps`, has moved away from the run's `first`."""
    return f"{_measured(key, value, steps)}; it began at {format_value(first)}"


def above_median(key: str, value: float, median_before: float) -> str:
    """`value` stands out from the steps before."""
    return f"{key} is {format_value(value)}, the median of the steps before is {format_value(median_before)}"


def off_best(key: str, value: float, best: float, steps: int = 1) -> str:
    """`value`, a mean over `steps`, is worse than the `best` of the run."""
    return f"{_measured(key, value, steps)}; at its best it was {format_value(best)}"


def _measured(key: str, value: float, steps: int) -> str:
    return f"{key} is {format_value(value)}" + (f" on average over {steps} steps" if steps > 1 else "")
