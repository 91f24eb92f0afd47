"""What a model that learns tasks one after the other still knows, from the matrix of its scores.

R is (T, T): R[i, j] is the score on task j after training on tasks 0 .. i, higher is better. All results are in the
unit of the scores.
"""

from torch import Tensor


def average_score(scores: Tensor) -> float:
    """Mean over tasks of the last row, 1/T sum_j R[T-1, j] (Lopez-Paz and Ranzato 2017).

    Raises:
        ValueError: `scores` is no square matrix.
    """
    return float(_square(scores)[-1].mean())


def forgetting(scores: Tensor) -> float:
    """Mean over tasks but the last of what was lost since the best earlier moment (Chaudhry et al. 2018).

    1/(T-1) sum_{j < T-1} (max_{i < T-1} R[i, j] - R[T-1, j]); below 0 where later tasks helped. Of one task it is 0.

    Raises:
        ValueError: `scores` is no square matrix.
    """
    if len(_square(scores)) == 1:
        return 0.0
    return float((scores[:-1, :-1].amax(0) - scores[-1, :-1]).mean())


def backward_transfer(scores: Tensor) -> float:
    """Mean over tasks but the last of the change since each was learned (Lopez-Paz and Ranzato 2017).

    1/(T-1) sum_{j < T-1} (R[T-1, j] - R[j, j]). Of one task it is 0.

    Raises:
        ValueError: `scores` is no square matrix.
    """
    if len(_square(scores)) == 1:
        return 0.0
    return float((scores[-1, :-1] - scores.diagonal()[:-1]).mean())


def _square(scores: Tensor) -> Tensor:
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1] or not len(scores):
        raise ValueError(f"scores has shape {tuple(scores.shape)}; a row and a column for each task are needed")
    return scores
