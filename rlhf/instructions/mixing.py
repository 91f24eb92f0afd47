"""How many examples of each task: examples-proportional mixing with a cap and a temperature.

rate_m = min(e_m, cap)^(1/T) / sum_n min(e_n, cap)^(1/T), where e_m is the number of rows of task m (Raffel et al. 2020,
section 3.5.2; Wei et al. 2022, section 2.4, takes cap 3000 and T = 1).
"""

import math
from collections.abc import Mapping


def mixing_rates(counts: Mapping[str, int], *, cap: int, temperature: float) -> dict[str, float]:
    """Share of each task; they add up to 1.

    Args:
        counts: Rows of each task, at least one.
        cap: Most rows that count.
        temperature: T.
    """
    weights = {task: min(count, cap) ** (1 / temperature) for task, count in counts.items()}
    total = math.fsum(weights.values())
    return {task: weight / total for task, weight in weights.items()}


def whole_shares(rates: Mapping[str, float], total: int) -> dict[str, int]:
    """`total` divided by rates into whole numbers that add up to it: the largest remainders are rounded up."""
    exact = {task: rate * total for task, rate in rates.items()}
    shares = {task: math.floor(round(value, 9)) for task, value in exact.items()}
    missing = total - sum(shares.values())
    for task in sorted(exact, key=lambda name: (shares[name] - exact[name], name))[:missing]:
        shares[task] += 1
    return shares
