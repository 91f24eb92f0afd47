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
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from policies.backbone import Backbone
from policies.sources import require_model
from policies.tokenization import tokenizer_fingerprint
from reward.config import (
    EnsembleSource,
    FunctionSource,
    HttpSource,
    LearnedModelConfig,
    ModelSource,
    RewardSource,
)
from reward.ensemble import EnsembleReward
from reward.functions import call_function, load_function
from reward.http_source import HttpReward
from reward.interface import RewardFailure, RewardFn, RewardOutput, RewardRequest, Scores
from reward.model import RewardModel
from reward.normalization import Normalization, Normalizer
from reward.rules import RuleConfig, UnscorableError, apply_rule
from reward.scoring import LearnedReward, SequenceScorer
from reward.shared_model import SharedRewardModel, shared_parts


class ComponentOutput(NamedTuple):
    """What one source says of a batch.

    Attributes:
        scores: (B,) scores, NaN where there is none.
        reasons: Why there is none, by index.
        watched: Other numbers about the responses, (B,) each; logged as `<name>/<key>`, with no part in the sum.
    """

    scores: Scores
    reasons: Mapping[int, str]
    watched: Mapping[str, Scores] = {}


ComponentFn = Callable[[Sequence[RewardRequest]], ComponentOutput]
ScoreFn = Callable[[Sequence[RewardRequest]], tuple[Scores, Mapping[int, str]]]
"""A source with nothing more to log than its scores."""


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
            output = component.score(requests)
            scores[component.name] = output.scores
            scores |= {f"{component.name}/{key}": values for key, values in output.watched.items()}
            if component.weight:
                total += component.weight * output.scores.astype(np.float64)
                failures = {index: f"{component.name}: {reason}" for index, reason in output.reasons.items()} | failures
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
        EndpointError: a source's endpoint does not answer.
    """
    fingerprint = None if policy_tokenizer is None else tokenizer_fingerprint(policy_tokenizer)
    components: list[Component] = []
    for name, source in zip(component_names(sources), sources, strict=True):
        score = _component(name, source, fingerprint, shared_backbone)
        components.append(Component(name, source.weight, score))
    return CompositeReward(components)


def require_scales(sources: Sequence[RewardSource]) -> None:
    """Refuses learned models without the scale that their source asks for, before anything heavy is loaded.

    Raises:
        ValueError: naming the model and the command that fits its scale; or there is no such model.
    """
    for source in sources:
        if isinstance(source, ModelSource | EnsembleSource):
            for model in (source,) if isinstance(source, ModelSource) else source.members:
                require_model(model.path, field="reward.path")
                Normalizer.of_model(model.path, source.normalization)


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
    if isinstance(source, ModelSource | EnsembleSource):
        folder = Path(source.path if isinstance(source, ModelSource) else source.members[0].path)
        # `runs/sentiment/model` is the model folder of the run `sentiment`.
        name = folder.parent.name if folder.name == "model" else folder.name
        return re.sub(r"[^A-Za-z0-9_.-]", "_", name) or source.kind
    return source.kind


def _component(name: str, source: RewardSource, fingerprint: str | None, shared: Backbone | None) -> ComponentFn:
    if isinstance(source, ModelSource):
        return partial(_score_with_model, _learned_reward(name, source, source.normalization, fingerprint, shared))
    if isinstance(source, EnsembleSource):
        members = [
            _learned_reward(f"{name}-{number}", member, source.normalization, fingerprint, shared)
            for number, member in enumerate(source.members)
        ]
        return partial(_score_with_model, EnsembleReward(members, penalty=source.disagreement_penalty))
    plain = _plain_source(source)
    return lambda requests: ComponentOutput(*plain(requests))


def _plain_source(source: FunctionSource | HttpSource | RuleConfig) -> ScoreFn:
    if isinstance(source, FunctionSource):
        return partial(_score_with_function, source, load_function(source))
    if isinstance(source, HttpSource):
        endpoint = HttpReward(source)
        endpoint.require_reachable()
        return endpoint
    return partial(_score_with_rule, source)


def _learned_reward(
    name: str, model: LearnedModelConfig, normalization: Normalization, fingerprint: str | None, shared: Backbone | None
) -> LearnedReward:
    require_model(model.path, field="reward.path")
    normalizer = Normalizer.of_model(model.path, normalization)
    return LearnedReward(_scorer(name, model, shared), normalizer, model, policy_fingerprint=fingerprint)


def _scorer(name: str, model: LearnedModelConfig, shared: Backbone | None) -> SequenceScorer:
    """On the shared base where the model was trained on it, else with a base of its own."""
    parts = None if shared is None else shared_parts(model.path)
    if shared is not None and parts is not None and parts.base_fingerprint == shared.fingerprint:
        return SharedRewardModel(shared, parts, adapter=f"reward-{name}".replace(".", "_"))
    return RewardModel.from_folder(
        model.path, device=model.device, dtype=model.dtype, eos_token=model.eos_token, pad_token=model.pad_token
    )


def _score_with_model(reward: RewardFn, requests: Sequence[RewardRequest]) -> ComponentOutput:
    output = reward(requests)
    watched = {name: scores for name, scores in output.components.items() if name != "model"}
    return ComponentOutput(output.scores, {failure.index: failure.reason for failure in output.failures}, watched)


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
