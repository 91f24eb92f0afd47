"""Which tokens end a response."""

from typing import cast

from transformers import PreTrainedTokenizerBase

from rollout.config import ResponseLimits


def resolve_stop_ids(
    sampling: ResponseLimits, tokenizer: PreTrainedTokenizerBase, vocabulary_size: int
) -> tuple[int, ...]:
    """Ids of `sampling.stop_token_ids`; the tokenizer's end-of-sequence token where that is null.

    Raises:
        ValueError: if one of them is no token of the model.
    """
    if sampling.stop_token_ids is None:
        return (cast(int, tokenizer.eos_token_id),)
    for token_id in sampling.stop_token_ids:
        if not 0 <= token_id < vocabulary_size:
            raise ValueError(
                f"sampling.stop_token_ids holds {token_id}; the model's tokens are 0 to {vocabulary_size - 1}: remove "
                "or correct it"
            )
    return sampling.stop_token_ids
