import numpy as np
import pytest

from rollout.types import Completion, FinishReason, RolloutBatch
from tests.rollout.fakes import prompt_of


def completion(finish_reason: FinishReason) -> Completion:
    tokens, logprobs = np.array([4, 2], dtype=np.int32), np.array([-0.5, -1.0], dtype=np.float32)
    return Completion("p", 0, tokens, logprobs, finish_reason, policy_version=0)


def test_only_a_response_that_the_budget_ended_is_truncated() -> None:
    assert completion("length").is_truncated
    assert not completion("stop").is_truncated


def test_a_batch_holds_one_prompt_for_each_completion() -> None:
    prompts, completions = [prompt_of("p"), prompt_of("p")], [completion("stop"), completion("length")]
    assert len(RolloutBatch(prompts, completions)) == 2
    with pytest.raises(ValueError, match="1 prompts for 2 completions"):
        RolloutBatch(prompts[:1], completions)
