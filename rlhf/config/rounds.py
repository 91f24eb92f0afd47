"""Configuration of `rlhf rounds`."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, ValidationError, model_validator

from policies.config import StrictModel
from reward.config import ModelSource, RewardSource
from rlhf.config.eval import EvalConfig
from rlhf.config.ppo import PpoConfig
from rlhf.config.reward import RewardConfig
from rlhf.config.shared import StageConfig, TrainedModelConfig
from rlhf.config_loading.errors import explain
from rollout.config import SamplingConfig

Config = TypeVar("Config", bound=StrictModel)

StageSettings = Mapping[str, Any]

_GIVEN_BY_ROUNDS = ("run_dir", "seed", "tracking", "model", "reward")
_PROXY = "proxy"
"""Name of the round's reward model among the sources of PPO."""


class RoundsDataConfig(StrictModel):
    """Prompts."""

    train: str
    """Rows with `prompt`: answered for comparisons, a part each round, and what PPO trains on."""
    eval: str | None = None
    """Held-out rows with `prompt`, on which the policies of all rounds are compared at the end; needs `judges`."""


class CollectConfig(StrictModel):
    """The answers of a round that are ranked."""

    prompts: int = Field(default=500, ge=2)
    """Prompts of one round; rounds take turns through `data.train`."""
    held_out: int = Field(default=50, ge=1)
    """Of these, prompts whose rankings measure the reward model and train nothing."""
    responses_per_prompt: int = Field(default=4, ge=2)
    """Answers to each prompt; equal ones are ranked once."""
    sampling: SamplingConfig = SamplingConfig()
    """How they are drawn."""
    max_prompt_tokens: int = Field(default=256, ge=1)
    """A longer prompt is a bad row."""

    @model_validator(mode="after")
    def _something_to_train_on(self) -> Self:
        if self.held_out >= self.prompts:
            raise ValueError(f"held_out={self.held_out} leaves none of prompts={self.prompts} to train on; lower it")
        return self


class ScoreRanker(StrictModel):
    """Answers are ranked by a score: a reward model, rules, a function, an endpoint, or several of them added up."""

    kind: Literal["score"] = "score"
    """Tag of this variant."""
    reward: tuple[RewardSource, ...] = Field(min_length=1)
    """What scores."""
    tie: float = Field(default=0.0, ge=0)
    """Answers whose scores differ by no more than this from the next better one are tied with it."""


class FilesRanker(StrictModel):
    """Answers are ranked by people: every round stops for a file, and `--resume` goes on with it."""

    kind: Literal["files"] = "files"
    """Tag of this variant."""


Ranker = Annotated[ScoreRanker | FilesRanker, Field(discriminator="kind")]


class RoundsConfig(StageConfig):
    """`rlhf rounds`: collect, rank, reward model, PPO, and again from the policy that came out."""

    model: TrainedModelConfig
    """Policy of the first round, and base of every reward model; `tuning` is that of both."""
    data: RoundsDataConfig
    """Prompts."""
    rounds: int = Field(default=2, ge=1)
    """How often."""
    collect: CollectConfig = CollectConfig()
    """What is ranked."""
    ranker: Ranker
    """Who ranks."""
    comparisons: Literal["all", "latest"] = "all"
    """Which comparisons a reward model learns from: those of all rounds so far, or of its own round alone."""
    reward: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Settings of `rlhf reward`, such as `epochs` or `optimizer`; what rounds decide (model, data, folder, seed) is not
    among them."""
    ppo: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Settings of `rlhf ppo`, such as `steps`, `rollout` or `algorithm`, and `data.pretrain`."""
    judges: tuple[RewardSource, ...] = ()
    """Scores that no policy is trained on: watched in PPO with weight 0, and deciding the comparison at the end."""

    @model_validator(mode="after")
    def _stages_accept_their_settings(self) -> Self:
        for name in ("reward", "ppo"):
            taken = sorted(set(getattr(self, name)) & set(_GIVEN_BY_ROUNDS))
            if taken:
                raise ValueError(f"{name}.{taken[0]} is decided by rounds; leave it out")
        self.reward_stage("run", self.model.path, train="rows", held_out="rows", normalize="rows")
        self.ppo_stage("run", self.model.path, reward_model="model")
        if (self.data.eval is None) != (not self.judges):
            raise ValueError(
                "data.eval and judges compare the rounds at the end, with each other only: give both or none"
            )
        return self

    def reward_stage(self, run_dir: str, base: str, *, train: str, held_out: str, normalize: str) -> RewardConfig:
        """The configuration of a round's reward model.

        Raises:
            ValueError: `reward` holds what `rlhf reward` does not accept.
        """
        given = {"train": train, "eval": held_out, "normalize": normalize, "format": {"kind": "rankings"}}
        return _stage(RewardConfig, "reward", self.reward, self._shared(run_dir, base) | {"data": given})

    def ppo_stage(self, run_dir: str, policy: str, *, reward_model: str) -> PpoConfig:
        """The configuration of a round's PPO.

        Raises:
            ValueError: `ppo` holds what `rlhf ppo` does not accept.
        """
        longest = self.collect.max_prompt_tokens + self.collect.sampling.max_response_tokens
        proxy = ModelSource(name=_PROXY, path=reward_model, max_tokens=longest).model_dump(mode="json")
        watched = [judge.model_dump(mode="json") | {"weight": 0.0} for judge in self.judges]
        given = {"reward": [proxy, *watched], "data": {"train": self.data.train}}
        return _stage(PpoConfig, "ppo", self.ppo, self._shared(run_dir, policy) | given)

    def eval_stage(self, run_dir: str, policies: list[str]) -> EvalConfig:
        """The comparison at the end: the last policy against the start, with those of earlier rounds beside it."""
        *earlier, last = ({"path": path} for path in policies)
        given = {
            "baseline": {"path": self.model.path},
            "models": list(earlier),
            "data": {"eval": self.data.eval},
            "reward": [judge.model_dump(mode="json") for judge in self.judges],
            "sampling": self.collect.sampling.model_dump(mode="json"),
            "max_prompt_tokens": self.collect.max_prompt_tokens,
        }
        return _stage(EvalConfig, "eval", {}, self._shared(run_dir, "") | given | {"model": last})

    def _shared(self, run_dir: str, path: str) -> dict[str, Any]:
        tracking = self.tracking.model_dump(mode="json")
        model = self.model.model_dump(mode="json") | {"path": path}
        return {"run_dir": run_dir, "seed": self.seed, "tracking": tracking, "model": model}


def _stage(cls: type[Config], name: str, settings: StageSettings, given: StageSettings) -> Config:
    """The settings of a stage with what rounds decide in their place."""
    data = {**settings.get("data", {}), **given["data"]}
    try:
        return cls.model_validate_json(json.dumps({**settings, **given, "data": data}), strict=True)
    except ValidationError as error:
        raise ValueError("; ".join(f"{name}: {line}" for line in explain(cls, error))) from error
