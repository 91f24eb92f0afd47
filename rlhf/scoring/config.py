"""Configuration of `rlhf serve-reward` and `rlhf normalize-reward`."""

from typing import Literal

from pydantic import Field

from policies.config import StrictModel
from reward.config import TOKEN_VARIABLE, EnvironmentVariable, LearnedModelConfig, RewardSource


class ServeRewardConfig(StrictModel):
    """`rlhf serve-reward`: scores over HTTP, for `kind: http` of a run elsewhere or any other client."""

    reward: tuple[RewardSource, ...] = Field(min_length=1)
    """Sources whose weighted sum is the score; one learned model is one source."""
    host: str = "127.0.0.1"
    """Address to listen at; 127.0.0.1 is reached from this machine alone, 0.0.0.0 from everywhere, unencrypted."""
    port: int = Field(default=8801, ge=0, le=65535)
    """Port to listen at; 0 takes a free one."""
    token_variable: EnvironmentVariable = TOKEN_VARIABLE
    """Environment variable that holds the token; where it is not set, a token is made up and shown once."""
    responses_per_call: int = Field(default=256, ge=1)
    """Most responses of one call."""
    responses_per_batch: int = Field(default=256, ge=1)
    """Responses of calls that wait together, scored in one pass; a larger call is a pass of its own."""
    gather_seconds: float = Field(default=0.005, ge=0, le=1)
    """How long the first call of a pass waits for company."""
    waiting_responses: int = Field(default=4096, ge=1)
    """Most responses that wait for a score; a call beyond that is answered 503 and may be repeated."""
    concurrent_calls: int = Field(default=64, ge=1)
    """Most connections; one beyond that is answered 503."""
    call_bytes: int = Field(default=8 * 1024**2, ge=1024)
    """Largest body of a call; a larger one is answered 413."""
    receive_seconds: float = Field(default=30.0, gt=0)
    """Longest wait for the body of a call; after it the call is answered 408."""


class NormalizeDataConfig(StrictModel):
    """What the scale is fitted on."""

    normalize: str
    """Rows with `prompt` and `completion` (demonstrations or SFT outputs) whose mean score becomes 0."""
    on_bad_row: Literal["error", "skip"] = "error"
    """`error` stops at a bad row and names it; `skip` drops, counts and reports it."""


class NormalizeRewardConfig(StrictModel):
    """`rlhf normalize-reward`: fits the scale of a reward model that has none, such as one trained elsewhere."""

    model: LearnedModelConfig
    """The model, read as the runs will read it."""
    data: NormalizeDataConfig
    """Responses that score 0 on average, with a standard deviation of 1."""
    run_dir: str | None = None
    """Folder for a copy of the model with its scale, needed for a hub name; null writes the scale into `model.path`."""
    replace: bool = False
    """Whether a scale that the model has already may be overwritten."""
