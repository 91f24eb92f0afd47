"""Conditional logit: the one likelihood behind Bradley-Terry, Davidson and Plackett-Luce (McFadden 1974).

A stage offers alternatives; alternative a is taken with probability exp(eta_a) / sum over its stage of exp(eta), where
eta = features @ beta + offset. The log-likelihood of counts y with a Gaussian prior on beta,

    sum_a y_a eta_a - sum_t n_t log sum_{a in t} exp(eta_a) - 1/2 sum_p precision_p beta_p^2,    n_t = sum_{a in t} y_a,

is concave, so Newton's method finds its only maximum. Owns likelihood, fit and Fisher information; which alternatives
a ranking has is the business of `bradley_terry` and `plackett_luce`.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import spsolve

Array = NDArray[np.floating[Any]]
IntArray = NDArray[np.int64]
Matrix = Array | sparse.csr_array

_MAX_STEPS = 100
_MAX_HALVINGS = 30
_CONVERGED = 1e-10
"""Newton decrement, twice the log-likelihood still to be gained."""
_DENSE_ENTRIES = 20_000
"""Features of at most so many entries are kept dense, which is several times faster; large ones must be sparse."""


class ConvergenceError(RuntimeError):
    """The maximum was not reached."""


@dataclass(frozen=True, slots=True)
class ChoiceFit:
    """Where the likelihood has its maximum.

    Attributes:
        parameters: (P,) beta.
        hessian: (P, P) sparse, minus the second derivative of the penalised log-likelihood at `parameters`: the Fisher
            information plus the prior's precision. Singular along the free shift.
        log_likelihood: At `parameters`, nats, without the prior.
    """

    parameters: Array
    hessian: sparse.csr_array
    log_likelihood: float


@dataclass(frozen=True)
class ChoiceModel:
    """Stages and their alternatives, without counts.

    Attributes:
        features: (A, P) sparse, one row an alternative; the alternatives of a stage stand together.
        offsets: (A,) added to eta.
        starts: (T,) first alternative of each stage; starts[0] = 0, ascending.
    """

    features: sparse.csr_array
    offsets: Array
    starts: IntArray

    def fit(
        self, counts: Array, *, precision: Array, shift: Array | None = None, start: Array | None = None
    ) -> ChoiceFit:
        """Maximises the penalised log-likelihood.

        Args:
            counts: (A,) how often each alternative was taken; fractions are weights.
            precision: (P,) inverse variances of the Gaussian prior around 0; 0 is no prior.
            shift: (P,) a direction along which nothing changes, such as the same constant on all strengths; the fit
                stays orthogonal to it where `start` is. None: there is none.
            start: (P,) first guess; None is 0.

        Raises:
            ConvergenceError: the maximum is at infinity, or was not reached.
        """
        beta = np.zeros(self.parameter_count) if start is None else start.copy()
        value, probabilities = self._evaluate(beta, counts)
        value -= 0.5 * float(precision @ beta**2)
        for _ in range(_MAX_STEPS):
            gradient, hessian = self._derivatives(beta, counts, probabilities, precision)
            step = _solve(hessian, gradient, shift)
            beta, value, probabilities = self._climb(beta, step, value, counts, precision)
            if float(gradient @ step) <= _CONVERGED:
                value += 0.5 * float(precision @ beta**2)
                return ChoiceFit(beta, sparse.csr_array(hessian), value)
        raise ConvergenceError(
            f"the likelihood of the rankings has no maximum within {_MAX_STEPS} Newton steps; set fit.prior_std"
        )

    def _climb(
        self, beta: Array, step: Array, value: float, counts: Array, precision: Array
    ) -> tuple[Array, float, Array]:
        """The Newton step, halved until the penalised log-likelihood does not fall."""
        for halvings in range(_MAX_HALVINGS):
            trial = beta + 0.5**halvings * step
            reached, probabilities = self._evaluate(trial, counts)
            reached -= 0.5 * float(precision @ trial**2)
            if reached >= value - 1e-9 * (1.0 + abs(value)):
                return trial, reached, probabilities
        raise ConvergenceError("no step along the Newton direction raises the likelihood; set fit.prior_std")

    def _evaluate(self, beta: Array, counts: Array) -> tuple[float, Array]:
        """Log-likelihood, and (A,) probability of each alternative within its stage."""
        eta = self._matrix @ beta + self.offsets
        largest = np.maximum.reduceat(eta, self.starts)
        weights = np.exp(eta - largest[self._stage_of])
        totals = np.add.reduceat(weights, self.starts)
        taken = np.add.reduceat(counts, self.starts)
        value = float(counts @ eta - taken @ (largest + np.log(totals)))
        return value, weights / totals[self._stage_of]

    def _derivatives(self, beta: Array, counts: Array, probabilities: Array, precision: Array) -> tuple[Array, Matrix]:
        """Gradient, and minus the Hessian: sum_t n_t Cov_t(features) + diag(precision)."""
        taken = np.add.reduceat(counts, self.starts)
        expected = taken[self._stage_of] * probabilities
        gradient = self._matrix.T @ (counts - expected) - precision * beta
        means = self._stages @ _rows_times(self._matrix, probabilities)
        spread = self._matrix.T @ _rows_times(self._matrix, expected) - means.T @ _rows_times(means, taken)
        if isinstance(spread, np.ndarray):
            return gradient, spread + np.diag(precision)
        return gradient, sparse.csr_array(spread + sparse.diags_array(precision))

    @property
    def parameter_count(self) -> int:
        """P."""
        return _shape(self.features)[1]

    @cached_property
    def _matrix(self) -> Matrix:
        rows, columns = _shape(self.features)
        return self.features.toarray() if rows * columns <= _DENSE_ENTRIES else self.features

    @cached_property
    def _stage_of(self) -> IntArray:
        """(A,) stage of each alternative."""
        sizes = np.diff(np.append(self.starts, _shape(self.features)[0]))
        return np.repeat(np.arange(len(self.starts)), sizes)

    @cached_property
    def _stages(self) -> sparse.csr_array:
        """(T, A) 1 where an alternative belongs to a stage."""
        count = _shape(self.features)[0]
        ones, pointers = np.ones(count), np.append(self.starts, count)
        return sparse.csr_array((ones, np.arange(count), pointers), shape=(len(self.starts), count))


def covariance_of(hessian: sparse.csr_array, shift: Array | None = None) -> Array:
    """(P, P) inverse of the information; with a free shift the pseudo-inverse, for parameters orthogonal to it."""
    if shift is None:
        return np.linalg.inv(hessian.toarray())
    unit = shift / np.linalg.norm(shift)
    along = np.outer(unit, unit)
    # Along the shift the information is 0; set to 1 it can be inverted, and the 1 taken out again.
    return np.linalg.inv(hessian.toarray() + along) - along


def _shape(matrix: sparse.csr_array) -> tuple[int, int]:
    return cast(tuple[int, int], matrix.shape)  # scipy types it as optional


def _solve(hessian: Matrix, gradient: Array, shift: Array | None) -> Array:
    if shift is None and not isinstance(hessian, np.ndarray):
        return cast(Array, spsolve(hessian.tocsc(), gradient))
    dense = hessian if isinstance(hessian, np.ndarray) else hessian.toarray()
    if shift is not None:
        dense = dense + np.outer(shift, shift) / float(shift @ shift)
    return np.linalg.solve(dense, gradient)


def _rows_times(matrix: Matrix, factors: Array) -> Matrix:
    """A matrix with each row multiplied by its factor."""
    if isinstance(matrix, np.ndarray):
        return factors[:, None] * matrix
    matrix = sparse.csr_array(matrix)
    data = matrix.data * np.repeat(factors, np.diff(matrix.indptr))
    return sparse.csr_array((data, matrix.indices, matrix.indptr), shape=matrix.shape)
