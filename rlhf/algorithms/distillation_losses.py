"""Distillation: a student learns what a teacher says, token by token (Hinton et al. 2015) or score by score."""

from torch import Tensor


def soft_target_loss(teacher_logits: Tensor, student_logits: Tensor, *, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) at temperature T: T^2 sum_v p_v (log p_v - log q_v), p = softmax(teacher / T).

    Gradients of soft targets shrink with 1 / T^2; the factor keeps them comparable over T, and beside a loss on the
    data (Hinton et al. 2015, section 2).

    Args:
        teacher_logits: (N, V).
        student_logits: (N, V).
        temperature: T, above 0.

    Returns:
        (N,) float32, nats times T^2; no gradient reaches the teacher.
    """
    teacher = (teacher_logits.detach().float() / temperature).log_softmax(-1)
    student = (student_logits.float() / temperature).log_softmax(-1)
    return temperature**2 * (teacher.exp() * (teacher - student)).sum(-1)


def score_regression_loss(teacher_scores: Tensor, student_scores: Tensor) -> Tensor:
    """(N,) squared distance of a student's scores from its teacher's, reward^2; no gradient reaches the teacher."""
    return (student_scores - teacher_scores.detach()).square()
