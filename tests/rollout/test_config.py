import pytest
from pydantic import ValidationError

from rollout.config import SamplingConfig


def test_a_shortest_response_longer_than_the_longest_is_refused() -> None:
    assert SamplingConfig(min_response_tokens=64, max_response_tokens=64).min_response_tokens == 64
    with pytest.raises(ValidationError, match="min_response_tokens=65 exceeds max_response_tokens=64"):
        SamplingConfig(min_response_tokens=65, max_response_tokens=64)


def test_an_empty_list_of_stop_tokens_is_refused() -> None:
    with pytest.raises(ValidationError, match="stop_token_ids"):
        SamplingConfig(stop_token_ids=())
