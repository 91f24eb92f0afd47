"""Judgements drawn from known strengths."""

import numpy as np

from reward.rankings.judgements import Judgement


def battles(strengths, games_a_pair, rng, *, tie_parameter=0.0):
    """So many games of every pair, by Davidson's model; without a tie parameter, by Bradley and Terry's."""
    found = []
    for first in range(len(strengths)):
        for second in range(first + 1, len(strengths)):
            half = (strengths[first] - strengths[second]) / 2
            odds = np.array([np.exp(half), np.exp(-half), tie_parameter])
            outcomes = [((first,), (second,)), ((second,), (first,)), ((first, second),)]
            for draw in rng.choice(3, size=games_a_pair, p=odds / odds.sum()):
                found.append(Judgement(outcomes[draw], prompt=len(found)))
    return found


def rankings(strengths, count, size, rng):
    """Plackett-Luce rankings of `size` random items each: sorted strength plus Gumbel noise (Yellott 1977)."""
    found = []
    for prompt in range(count):
        items = rng.choice(len(strengths), size=size, replace=False)
        felt = np.asarray(strengths)[items] + rng.gumbel(size=size)
        found.append(Judgement(tuple((int(item),) for item in items[np.argsort(-felt)]), prompt=prompt))
    return found


def coverage(fits, strengths):
    """(N,) in how many fits the 95 % Fisher interval of each strength holds the true one."""
    truth = np.asarray(strengths) - np.mean(strengths)
    hits = np.zeros(len(truth), dtype=int)
    for fit in fits:
        error = np.sqrt(np.diag(fit.covariance()))
        hits += np.abs(fit.strengths - truth) <= 1.959964 * error
    return hits
