"""Several sources -> one reward: weighted sum, components by name, failures kept.

Owns building each source from its configuration, the names of components, and the arithmetic of failure: a response
that a source with weight could not score has no score at all, never 0.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from policies.loading import Backbone
from policies.sources import require_model
from policies.tokenization import tokenizer_fingerprint
from reward.config import FunctionSource, ModelSource, RewardSource
from reward.functions import call_function, load_function
from reward.interface import RewardFailure, RewardOutput, RewardRequest, Scores
from reward.model import RewardModel
from reward.normalization import IDENTITY, Normalizer
from reward.rules import RuleConfig, UnscorableError, apply_rule
from reward.scoring import LearnedReward, SequenceScorer
from reward.shared_model import SharedRewardModel, shared_parts

ComponentFn = Callable[[Sequence[RewardRequest]], tuple[Scores, Mapping[int, str]]]
"""Requests -> (B,) scores, NaN where there is none, and the reasons by index."""


@dataclass(frozen=True, slots=True)
class Component:
    """One source in the sum.

    Attributes:
        name: Key of its scores.
        weight: Factor; 0 only watches.
        score: Computes its scores.
    """

    name: str
    weight: float
    score: ComponentFn


class CompositeReward:
    """score_i = sum over components of weight * component_i, float32.

    A component of weight 0 is reported and has no part in the sum, not even by failing.
    """

    def __init__(self, components: Sequence[Component]) -> None:
        self._components = components

    def __call__(self, requests: Sequence[RewardRequest]) -> RewardOutput:
        """Scores every request with every component; see `reward.interface.RewardFn`."""
        total = np.zeros(len(requests), dtype=np.float64)
        scores: dict[str, Scores] = {}
        failures: dict[int, str] = {}
        for component in self._components:
            scores[component.name], reasons = component.score(requests)
            if component.weight:
                total += component.weight * scores[component.name].astype(np.float64)
                failures = {index: f"{component.name}: {reason}" for index, reason in reasons.items()} | failures
        found = [RewardFailure(index, failures[index]) for index in sorted(failures)]
        return RewardOutput(total.astype(np.float32), scores, found)


def build_reward(
    sources: Sequence[RewardSource],
    *,
    policy_tokenizer: PreTrainedTokenizerBase | None,
    shared_backbone: Backbone | None = None,
) -> CompositeReward:
    """The reward function that a run's `reward` section describes.

    Args:
        sources: At least one.
        policy_tokenizer: Tokenizer that makes the token ids of requests; None where requests hold text only.
        shared_backbone: Base that a reward model's adapter joins where it was trained on that very base. Its weights
            must stay as they are; give None where the base itself trains.

    Raises:
        ValueError: a source that cannot be built, or two of the same name.
    """
    fingerprint = None if policy_tokenizer is None else tokenizer_fingerprint(policy_tokenizer)
    components: list[Component] = []
    for name, source in zip(component_names(sources), sources, strict=True):
        score = _component(name, source, fingerprint, shared_backbone)
        components.append(Component(name, source.weight, score))
    return CompositeReward(components)


def component_names(sources: Sequence[RewardSource]) -> list[str]:
    """One name for each source: its own, else the model's folder, the function, or the kind of rule.

    Raises:
        ValueError: if two sources have the same name.
    """
    names = [source.name or _derived_name(source) for source in sources]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(
            f"reward: {repeated[0]!r} names {names.count(repeated[0])} sources; give each its own reward.<n>.name"
        )
    return names


def _derived_name(source: RewardSource) -> str:
    if isinstance(source, FunctionSource):
        return source.function.rpartition(":")[2]
    if isinstance(source, ModelSource):
        folder = Path(source.path)
        # `runs/sentiment/model` is the model folder of the run `sentiment`.
        name = folder.parent.name if folder.name == "model" else folder.name
        return re.sub(r"[^A-Za-z0-9_.-]", "_", name) or source.kind
    return source.kind


def _component(name: str, source: RewardSource, fingerprint: str | None, shared: Backbone | None) -> ComponentFn:
    if isinstance(source, ModelSource):
        return partial(_score_with_model, _learned_reward(name, source, fingerprint, shared))
    if isinstance(source, FunctionSource):
        return partial(_score_with_function, source, load_function(source))
    return partial(_score_with_rule, source)


def _learned_reward(name: str, source: ModelSource, fingerprint: str | None, shared: Backbone | None) -> LearnedReward:
    require_model(source.path, field="reward.path")
    normalizer = Normalizer.load(source.path) if source.normalization == "stored" else IDENTITY
    return LearnedReward(_scorer(name, source, shared), normalizer, source, policy_fingerprint=fingerprint)


def _scorer(name: str, source: ModelSource, shared: Backbone | None) -> SequenceScorer:
    """On the shared base where the model was trained on it, else with a base of its own."""
    parts = None if shared is None else shared_parts(source.path)
    if shared is not None and parts is not None and parts.base_fingerprint == shared.fingerprint:
        return SharedRewardModel(shared, parts, adapter=f"reward-{name}".replace(".", "_"))
    return RewardModel.from_folder(source.path, device=source.device, dtype=source.dtype)


def _score_with_model(reward: LearnedReward, requests: Sequence[RewardRequest]) -> tuple[Scores, Mapping[int, str]]:
    output = reward(requests)
    return output.scores, {failure.index: failure.reason for failure in output.failures}


def _score_with_function(
    source: FunctionSource, function: Callable[..., Sequence[float | None]], requests: Sequence[RewardRequest]
) -> tuple[Scores, Mapping[int, str]]:
    scores = call_function(
        source, function, [request.prompt for request in requests], [request.response for request in requests]
    )
    return _finite(scores, f"{source.function} gave no finite number")


def _score_with_rule(rule: RuleConfig, requests: Sequence[RewardRequest]) -> tuple[Scores, Mapping[int, str]]:
    scores = np.full(len(requests), np.nan, dtype=np.float32)
    reasons: dict[int, str] = {}
    for index, request in enumerate(requests):
        try:
            scores[index] = apply_rule(rule, request)
        except UnscorableError as error:
            reasons[index] = str(error)
    return scores, reasons


def _finite(scores: Scores, reason: str) -> tuple[Scores, Mapping[int, str]]:
    bad = ~np.isfinite(scores)
    return np.where(bad, np.float32(np.nan), scores), {int(index): reason for index in np.flatnonzero(bad)}
