"""Configuration of `rlhf eval`."""

from typing import Literal

from pydantic import Field, model_validator

from policies.config import ModelConfig, StrictModel
from reward.config import RewardSource
from rlhf.config.shared import StageConfig
from rlhf.evaluation.config import BestOfNConfig, HarnessConfig, Judge, TasksConfig
from rollout.config import SamplingConfig


class EvalDataConfig(StrictModel):
    """Held-out prompts and text."""

    eval: str
    """Rows with `prompt`."""
    train: str | None = None
    """Training prompts; prompts that stand in both are counted and reported."""
    pretrain_eval: str | None = None
    """Held-out rows with `text` for perplexity."""
    tasks: tuple[str, ...] = ()
    """Files of `question`, `choices` and `answer` (index or text), or of `prompt` and `answer`: each is a task,
    measured before and after."""
    on_bad_row: Literal["error", "skip"] = "error"
    """`error` stops at a bad row and names it; `skip` drops, counts and reports it."""


class EvalConfig(StageConfig):
    """`rlhf eval`: two models or more side by side on the same prompts."""

    model: ModelConfig
    """The candidate."""
    baseline: ModelConfig
    """What it is compared with; also the reference of the KL."""
    models: tuple[ModelConfig, ...] = ()
    """Further models, such as those of runs with other KL coefficients: with the candidate they are points of reward
    over KL."""
    data: EvalDataConfig
    """Prompts and text."""
    reward: tuple[RewardSource, ...] = Field(min_length=1)
    """Judges that score; each is reported by name, the weighted sum decides the win rate."""
    judges: tuple[Judge, ...] = ()
    """Judges that compare two answers, asked in both orders; each has a win rate of its own."""
    proxy: str | None = None
    """Name of the reward source that training maximised: best-of-n chooses by it, and over-optimisation is the others
    over it."""
    best_of_n: BestOfNConfig | None = None
    """What the baseline would reach by choosing among n answers; needs `proxy`."""
    tasks: TasksConfig = TasksConfig()
    """How the rows of `data.tasks` are asked."""
    harness: HarnessConfig | None = None
    """Standard tasks of lm-evaluation-harness, measured before and after like those of `data.tasks`."""
    sampling: SamplingConfig = SamplingConfig()
    """How both models answer."""
    prompts: int | None = Field(default=None, ge=1)
    """How many prompts, from the first; null takes all."""
    responses_per_prompt: int = Field(default=1, ge=1)
    """Answers of each model to each prompt."""
    max_prompt_tokens: int = Field(default=256, ge=1)
    """A longer prompt is a bad row."""
    bootstrap_resamples: int = Field(default=2000, ge=100)
    """Resamples of the 95 % interval."""

    @model_validator(mode="after")
    def _best_of_n_chooses_by_something(self) -> "EvalConfig":
        if self.best_of_n is not None and self.proxy is None:
            raise ValueError("best_of_n chooses by the score of one reward source: name it in proxy")
        return self
