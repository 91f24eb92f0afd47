"""What rollout produced, as what rewards read: the one place where both meet."""

from transformers import PreTrainedTokenizerBase

from policies.tokenization import decode
from reward.interface import RewardRequest
from rollout.types import RolloutBatch


def reward_requests(batch: RolloutBatch, tokenizer: PreTrainedTokenizerBase) -> list[RewardRequest]:
    """One request for each completion of `batch`, in order; the response's text without special tokens."""
    return [
        RewardRequest(
            prompt=prompt.text,
            response=decode(completion.token_ids, tokenizer),
            prompt_ids=prompt.token_ids,
            response_ids=completion.token_ids,
            fields=prompt.fields,
        )
        for prompt, completion in zip(batch.prompts, batch.completions, strict=True)
    ]
