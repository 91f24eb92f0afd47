"""How fast a PPO step could be: its matrix products alone, each at the limit measured on this machine.

Owns the count of operations. Attention (0.3 % of them at these lengths), norms, the optimizer and everything else that
takes time are left out, so no implementation that computes what PPO says is faster, in this precision on this machine.
"""

from dataclasses import dataclass

from tests.benchmarks.ppo_workload import LORA_RANK, Case, Shape, inner_size


@dataclass(frozen=True, slots=True)
class Weights:
    """Numbers in the matrices that every token meets, and in those that only response tokens do.

    Attributes:
        body: Of the decoder layers.
        adapter: Of the LoRA factors beside them; 0 in full tuning.
        head: Of the output layer.
    """

    body: int
    adapter: int
    head: int

    @classmethod
    def of(cls, shape: Shape, case: Case) -> "Weights":
        """Query, key, value and output projections, a gated MLP of three, all with adapters."""
        hidden, inner = shape.hidden, inner_size(shape)
        layer = 4 * hidden**2 + 3 * hidden * inner
        factors = LORA_RANK * (4 * 2 * hidden + 3 * (hidden + inner)) if case.lora else 0
        return cls(shape.layers * layer, shape.layers * factors, hidden * shape.vocabulary)


def step_operations(shape: Shape, case: Case, critic: str, response_tokens: float) -> float:
    """Floating-point operations of a step.

    A product takes 2 operations for each number of its matrix and token, as much again for the gradient by its input,
    and as much for the gradient by a matrix that trains. Responses are sampled (one pass), their reward, reference
    log-probs and values computed (three), and policy and critic updated `epochs` times.

    Args:
        shape: Model and batch.
        case: What trains, and on which lengths.
        critic: `adapter` or `model`, a pass of its own; or `head`, on the policy's.
        response_tokens: Mean length of the responses.
    """
    weights = Weights.of(shape, case)
    prompt_tokens = (0.75 if case.ragged else 1.0) * shape.prompt_tokens
    tokens, responses = shape.samples * (prompt_tokens + response_tokens), shape.samples * response_tokens
    forward, head = 2 * (weights.body + weights.adapter) * tokens, 2 * weights.head * responses
    trained = 2 * (weights.adapter if case.lora else weights.body) * tokens
    body_update, head_update = 2 * forward + trained, (2 if case.lora else 3) * head
    sampling, scoring = forward + head, 3 * forward + head
    trunks = 1 if critic == "head" else 2
    return sampling + scoring + shape.epochs * (trunks * body_update + head_update)
