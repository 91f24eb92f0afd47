import pytest
from pydantic import ValidationError

from rollout.config import CompiledEngineConfig, HfEngineConfig, RolloutConfig, SamplingConfig


def test_a_shortest_response_longer_than_the_longest_is_refused() -> None:
    assert SamplingConfig(min_response_tokens=64, max_response_tokens=64).min_response_tokens == 64
    with pytest.raises(ValidationError, match="min_response_tokens=65 exceeds max_response_tokens=64"):
        SamplingConfig(min_response_tokens=65, max_response_tokens=64)


def test_an_empty_list_of_stop_tokens_is_refused() -> None:
    with pytest.raises(ValidationError, match="stop_token_ids"):
        SamplingConfig(stop_token_ids=())


def test_an_empty_stop_string_which_would_end_everything_is_refused() -> None:
    with pytest.raises(ValidationError, match="stop_strings"):
        SamplingConfig(stop_strings=("###", ""))


def test_the_kind_names_the_engine_and_its_settings() -> None:
    assert RolloutConfig().engine == CompiledEngineConfig()
    assert RolloutConfig.model_validate({"engine": {"kind": "hf"}}).engine == HfEngineConfig()
    with pytest.raises(ValidationError, match=r"engine\.hf\.slots"):
        RolloutConfig.model_validate({"engine": {"kind": "hf", "slots": 4}})
