"""Strengths of items from judgements: the fit that `bradley_terry` and `plackett_luce` share, and when there is one.

A strength is a log-odds: of two items alone, i beats j with probability sigmoid(s_i - s_j). Owns the fit with or
without a prior, and the conditions for a finite maximum. What a ranking says to each model is in their own modules.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from reward.rankings.conditional_logit import Array, ChoiceFit, ChoiceModel, IntArray, covariance_of

_TIE_PRIOR_STD = 10.0
"""Of the log tie parameter. Wide enough to say nothing where anything ties; it keeps a resample without ties finite."""
_NAMED_ITEMS = 5


class NotEstimableError(ValueError):
    """Judgements that leave strengths undefined without a prior."""


@dataclass(frozen=True, slots=True)
class StrengthFit:
    """Fitted strengths.

    Attributes:
        strengths: (N,) log-odds, mean 0 over items that are linked.
        log_tie: Logarithm of Davidson's tie parameter; None without one.
        log_likelihood: Nats, of all judgements at their weights.
    """

    strengths: Array
    log_tie: float | None
    log_likelihood: float
    _choice: ChoiceFit
    _shift: Array | None

    def covariance(self) -> Array:
        """(N, N) inverse Fisher information of the strengths, the tie parameter's uncertainty included."""
        count = len(self.strengths)
        return covariance_of(self._choice.hessian, self._shift)[:count, :count]

    def block_covariance(self, start: int, stop: int) -> Array:
        """Covariance of items start..stop-1 alone, given everything else; for items that meet nobody outside."""
        return np.linalg.inv(self._choice.hessian[start:stop, start:stop].toarray())


@dataclass(frozen=True)
class StrengthModel:
    """What judgements say about strengths, before they are weighted.

    Attributes:
        choices: Stages and alternatives over the strengths, and the log tie parameter where there is one.
        contributions: (J, A) sparse, what each judgement adds to the count of each alternative.
        item_count: N.
        edges: (E, 3) alternative, better item, worse item: what an alternative with a positive count shows.
    """

    choices: ChoiceModel
    contributions: sparse.csr_array
    item_count: int
    edges: IntArray

    def fit(self, weights: Array, *, prior_std: float | None, start: StrengthFit | None = None) -> StrengthFit:
        """Maximum likelihood, or the maximum of the posterior under a Gaussian prior on each strength.

        Args:
            weights: (J,) weight of each judgement; 1 is one vote.
            prior_std: Standard deviation of the prior around 0, log-odds; None is maximum likelihood, which needs
                `is_estimable(weights)`.
            start: An earlier fit of this model to start from.

        Raises:
            ConvergenceError: there is no finite maximum.
        """
        counts = self.contributions.T @ weights
        parameters = self.choices.parameter_count
        precision = np.zeros(parameters)
        precision[self.item_count :] = _TIE_PRIOR_STD**-2
        shift = None
        if prior_std is None:
            shift = np.zeros(parameters)
            shift[: self.item_count] = 1.0
        else:
            precision[: self.item_count] = prior_std**-2
        guess = start._choice.parameters if start else None
        found = self.choices.fit(counts, precision=precision, shift=shift, start=guess)
        strengths, ties = found.parameters[: self.item_count], found.parameters[self.item_count :]
        return StrengthFit(strengths, float(ties[0]) if len(ties) else None, found.log_likelihood, found, shift)

    def is_estimable(self, weights: Array) -> bool:
        """Whether a finite maximum of the likelihood exists without a prior.

        It does where every item can be reached from every other over wins and ties (Ford 1957; Hunter 2004,
        assumption 1).
        """
        return self._components(weights, connection="strong")[0] == 1

    def require_estimable(self, weights: Array, names: Sequence[str]) -> None:
        """Refuses judgements that leave strengths undefined, and says which.

        Raises:
            NotEstimableError: nobody links two parts of the items, or one part never loses to the rest.
        """
        remedy = "add comparisons, or set fit.prior_std=1.0 for a Gaussian prior that keeps strengths finite"
        parts, part_of = self._components(weights, connection="weak")
        if parts > 1:
            groups = " and ".join(f"{{{_listed(names, part_of == part)}}}" for part in range(min(parts, 2)))
            raise NotEstimableError(
                f"fit: the comparisons fall into {parts} parts that never meet, such as {groups}; {remedy}"
            )
        parts, part_of = self._components(weights, connection="strong")
        if parts > 1:
            unbeaten = self._unbeaten(weights, part_of)
            raise NotEstimableError(
                f"fit: {_listed(names, unbeaten)} never lost to or tied with any other, so the likelihood has no "
                f"finite maximum (perfect separation); {remedy}"
            )

    def _components(self, weights: Array, *, connection: str) -> tuple[int, IntArray]:
        edges = self._shown(weights)
        shape = (self.item_count, self.item_count)
        graph = sparse.csr_array((np.ones(len(edges)), (edges[:, 1], edges[:, 2])), shape=shape)
        return connected_components(graph, directed=True, connection=connection)

    def _unbeaten(self, weights: Array, part_of: IntArray) -> NDArray[np.bool_]:
        edges = self._shown(weights)
        beaten = {int(part_of[worse]) for _, better, worse in edges if part_of[better] != part_of[worse]}
        first = next(part for part in range(int(part_of.max()) + 1) if part not in beaten)
        return part_of == first

    def _shown(self, weights: Array) -> IntArray:
        return self.edges[(self.contributions.T @ weights)[self.edges[:, 0]] > 0]


def _listed(names: Sequence[str], chosen: NDArray[np.bool_]) -> str:
    """The first few names, and how many more."""
    found = [names[index] for index in np.flatnonzero(chosen).tolist()]
    rest = f" and {len(found) - _NAMED_ITEMS} more" if len(found) > _NAMED_ITEMS else ""
    return ", ".join(map(repr, found[:_NAMED_ITEMS])) + rest
