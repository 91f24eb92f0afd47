"""How much memory a PPO run will need, by arithmetic: nothing is loaded and nothing is started.

Owns which terms a process has, by its roles, and in which phase of a step. The formula of each is `memory_terms`;
what a model's sizes are is read by `policies.model_shape`; who lives where is decided by `rlhf.runtime.placement`; how
the numbers are shown is `command`.

Every prompt and response is taken at its longest, so data that is shorter needs less.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Literal

from policies.config import FullTuning, LoraTuning, ModelConfig, Quantization, virtual_tokens_of
from policies.model_shape import ModelShape, adapter_parameters, model_shape
from policies.sources import resolve_source
from reward.config import EnsembleSource, LearnedModelConfig, ModelSource
from rlhf.config import PpoConfig
from rlhf.planning.adapter_sizes import adapter_elements, frozen_elements, merged_elements
from rlhf.planning.memory_terms import (
    FLOAT32,
    LOGITS_PER_CHUNK,
    activation_bytes,
    anchor_bytes,
    backward_bytes,
    cache_bytes,
    logits_bytes,
    optimizer_bytes,
    packed_elements,
    sampler_bytes,
    weight_bytes,
)
from rlhf.runtime.config import LearnerResources, SplitPlacement
from rlhf.runtime.placement import RoleName
from rollout.config import CompiledEngineConfig, HfEngineConfig, VllmEngineConfig

Terms = dict[str, int]
"""What memory is for -> bytes."""
Device = Literal["cpu", "cuda"]

MIB = 2**20
LIBRARIES = 640 * MIB
"""Main memory of a process beside its tensors, as measured on a CPU after a step: torch 2.13, transformers 5.23 and
PEFT 0.21, and the kernels that have been made."""
_SPARE_COLUMNS = 32
LONGEST_PLAIN_ATTENTION = 256
"""Tokens up to which attention keeps its probabilities on a CPU (`policies.attention`)."""


@dataclass(frozen=True, slots=True)
class ActorMemory:
    """The memory of one process.

    Attributes:
        name: Of the actor, or of the driver.
        roles: What it hosts.
        device: Where its models live.
        resident: There from the first step to the last, on the device.
        phases: What each phase of a step adds while it lasts, on the device.
        host: Beside that, in main memory.
    """

    name: str
    roles: tuple[RoleName, ...]
    device: Device
    resident: Terms
    phases: Mapping[str, Terms]
    host: Terms = field(default_factory=dict[str, int])

    @property
    def peak_phase(self) -> str | None:
        """The phase that needs most; None for a process without phases."""
        return max(self.phases, key=lambda phase: sum(self.phases[phase].values()), default=None)

    @property
    def peak(self) -> int:
        """Most bytes on the device at the same time."""
        extra = 0 if self.peak_phase is None else sum(self.phases[self.peak_phase].values())
        return sum(self.resident.values()) + extra


@dataclass(frozen=True, slots=True)
class StepSizes:
    """How a step falls into passes, with every prompt and response at its longest.

    Attributes:
        samples: Responses of a step.
        sequence_tokens: T, the longest prompt and the longest response.
        response_tokens: R.
        minibatch_rows: Responses of one optimizer step.
        rows: Responses of one micro-batch of an update.
        scoring_rows: Responses of one micro-batch without gradients.
    """

    samples: int
    sequence_tokens: int
    response_tokens: int
    minibatch_rows: int
    rows: int
    scoring_rows: int

    @classmethod
    def of(cls, config: PpoConfig, context_tokens: int, *, ranks: int = 1) -> "StepSizes":
        """The sizes that a configuration asks for, on a model with so much context, divided among ranks."""
        rollout = config.rollout
        response = rollout.sampling.max_response_tokens
        prompt = max(1, min(rollout.max_prompt_tokens, context_tokens - response))
        samples = rollout.prompts_per_step * rollout.responses_per_prompt
        minibatch = ceil(ceil(samples / config.algorithm.minibatches) / ranks)
        fitting = max(1, config.micro_batch_tokens // (prompt + response))
        return cls(samples, prompt + response, response, minibatch, min(fitting, minibatch), min(fitting, samples))

    @property
    def accumulates(self) -> bool:
        """Whether gradients of one micro-batch are there while the next one runs."""
        return self.rows < self.minibatch_rows


@dataclass(frozen=True, slots=True)
class Models:
    """The sizes of all models of a run.

    Attributes:
        base: The policy's model.
        bytes_per_weight: b of the base.
        policy_adapter: Weights of the policy's adapter; 0 under full tuning.
        reference_adapter: Weights of frozen adapters: the one that the run started from, and the start of PiSSA.
        critic_adapter: Weights of the critic's adapter; 0 for other critics.
        adapted: Weights that the adapter is merged into.
        rewards: Bytes of the reward models, by whether they share the base.
        quantization: How the base's linear layers are held.
    """

    base: ModelShape
    bytes_per_weight: int
    policy_adapter: int
    reference_adapter: int
    critic_adapter: int
    adapted: int
    rewards: Terms
    quantization: Quantization = "none"

    @property
    def base_bytes(self) -> int:
        """The base in memory."""
        return weight_bytes(self.base, self.bytes_per_weight, self.quantization)

    @property
    def widest_linear(self) -> int:
        """Bytes of the largest linear layer as numbers, which a product with its codes needs for a moment."""
        if self.quantization == "none":
            return 0
        return max(linear.elements for linear in self.base.linears) * self.bytes_per_weight

    def cut(self, ranks: int) -> "Models":
        """What each rank holds where decoder layers are cut over several (`policies.sharding`)."""
        layers = sum(linear.elements for linear in self.base.linears)
        held = self.base.parameters - layers + ceil(layers / ranks)
        return replace(self, base=replace(self.base, parameters=held))

    @property
    def layer_bytes(self) -> int:
        """One decoder layer, whole."""
        return sum(linear.elements for linear in self.base.linears) // self.base.layers * self.bytes_per_weight


def models_of(config: PpoConfig) -> Models:
    """Reads the sizes of all models of a run.

    Raises:
        ValueError: a model cannot be found, or does not say its sizes.
    """
    source, tuning = resolve_source(config.model.path), config.model.tuning
    base = model_shape(source.base)
    started = 0 if source.adapter is None else adapter_parameters(source.adapter)
    policy = started or adapter_elements(base, tuning)
    return Models(
        base=base,
        bytes_per_weight=_bytes_of(config.model),
        policy_adapter=policy,
        reference_adapter=started + frozen_elements(base, tuning),
        critic_adapter=adapter_elements(base, tuning) if config.critic_kind == "adapter" else 0,
        adapted=merged_elements(base, tuning),
        rewards=_reward_models(config, source.base),
        quantization=config.model.quantization,
    )


def actor_memory(
    name: str, roles: tuple[RoleName, ...], device: Device, config: PpoConfig, models: Models
) -> ActorMemory:
    """The memory of a process that hosts some of the roles."""
    learner = config.placement.learner if isinstance(config.placement, SplitPlacement) else LearnerResources()
    is_cut = "learner" in roles and learner.sharding == "full"
    if is_cut:
        models = models.cut(learner.workers)
    step = StepSizes.of(config, models.base.context_tokens, ranks=learner.workers if "learner" in roles else 1)
    # vLLM has a model of its own, whose memory its configuration bounds.
    own_engine = isinstance(config.rollout.engine, VllmEngineConfig)
    on_backbone = [role for role in roles if role != "reward" and not (role == "rollout" and own_engine)]
    resident: Terms = {}
    if on_backbone:
        resident["base weights"] = models.base_bytes
        resident["adapters"] = FLOAT32 * (models.policy_adapter + models.reference_adapter)
    phases: dict[str, Terms] = {}
    if "rollout" in on_backbone:
        phases["rollout"] = rollout_terms(config, models, step, device)
    if set(on_backbone) & {"reference", "learner"}:
        phases["scoring"] = scoring_terms(models, step)
    if "reward" in roles:
        resident |= models.rewards
    host = {"libraries": LIBRARIES}
    if "learner" in roles:
        resident = _added(resident, learner_terms(config, models, trains_beside_reference="reference" in roles))
        phases["update"] = update_terms(config, models, step, device)
        if is_cut:
            # The layer of the pass, and the one that is fetched while it computes.
            phases = {phase: terms | {"whole layers": 2 * models.layer_bytes} for phase, terms in phases.items()}
        if device == "cuda":
            host["checkpoint"] = state_bytes(config, models)
    return ActorMemory(name, roles, device, {k: v for k, v in resident.items() if v}, phases, host)


# --- what stays -------------------------------------------------------------------------------------------------------


def trained_elements(config: PpoConfig, models: Models) -> tuple[int, int]:
    """Weights that train: the policy's and the critic's. Their heads, D + 1 numbers each, are left out."""
    base = models.base
    policy = base.parameters if isinstance(config.model.tuning, FullTuning) else models.policy_adapter
    whole = base.parameters - base.output_parameters
    by_kind = {"none": 0, "head": 0, "adapter": models.critic_adapter, "model": whole}
    return policy, by_kind[config.critic_kind]


def learner_terms(config: PpoConfig, models: Models, *, trains_beside_reference: bool) -> Terms:
    """Copies of the model, the critic's adapter, the optimizers' state, and what `algorithm.retention` keeps."""
    weights, is_full = models.base_bytes, isinstance(config.model.tuning, FullTuning)
    policy, critic = trained_elements(config, models)
    return {
        "adapters": FLOAT32 * models.critic_adapter,
        "reference copy": weights if is_full and trains_beside_reference and not models.reference_adapter else 0,
        "critic copy": weights if config.critic_kind == "model" else 0,
        "optimizer": _optimizer(config, models, policy, critic),
        "retention": anchor_bytes(config.algorithm.retention.kind, policy, _policy_bytes(config, models)),
    }


def state_bytes(config: PpoConfig, models: Models) -> int:
    """A checkpoint: what trains and its optimizer state."""
    policy, critic = trained_elements(config, models)
    return (
        policy * _policy_bytes(config, models)
        + critic * _critic_bytes(config, models)
        + _optimizer(config, models, policy, critic)
    )


# --- what a phase adds ------------------------------------------------------------------------------------------------


def rollout_terms(config: PpoConfig, models: Models, step: StepSizes, device: Device) -> Terms:
    """Decoding: weights that are there twice, in the form that decodes fastest, keys and values, a step's logits."""
    engine, base, b = config.rollout.engine, models.base, models.bytes_per_weight
    assert isinstance(engine, CompiledEngineConfig | HfEngineConfig), "vLLM's memory is not ours to plan"
    slots = engine.slots if isinstance(engine, CompiledEngineConfig) else engine.batch_size_responses
    slots = min(slots, step.samples, config.rollout.responses_per_call)
    is_merged = engine.merge_adapter and b == FLOAT32 and models.quantization == "none"
    terms = {"merged weights": models.adapted * b if is_merged else 0, "packed weights": 0}
    width, prefill = step.sequence_tokens + virtual_tokens_of(config.model.tuning), 0
    if isinstance(engine, CompiledEngineConfig):
        if device == "cpu":
            tuning = config.model.tuning
            moves = isinstance(tuning, FullTuning) or (isinstance(tuning, LoraTuning) and tuning.variant != "dora")
            terms["packed weights"] = packed_elements(base, models.quantization, keeps_weights=not moves) * b
        width += _SPARE_COLUMNS
        prompts = config.rollout.prompts_per_step * (step.sequence_tokens - step.response_tokens)
        prefill = min(engine.prefill_tokens, prompts)
    terms["keys and values"] = cache_bytes(base, slots * width + prefill, b)
    terms["logits"] = sampler_bytes(slots, base.vocabulary, b)
    return terms | _dequantized(models)


def scoring_terms(models: Models, step: StepSizes) -> Terms:
    """A pass without gradients: the widest layer of it, and one chunk of logits with their logarithms."""
    shape, tokens = models.base, step.scoring_rows * step.sequence_tokens
    widest = (3 if shape.is_gated else 2) * shape.intermediate + 3 * shape.hidden
    chunk = min(max(2**23 // shape.vocabulary, 512), LOGITS_PER_CHUNK // shape.vocabulary)
    logits = 2 * min(chunk, step.scoring_rows * step.response_tokens) * shape.vocabulary * FLOAT32
    # One after the other.
    return {"activations or logits": max(tokens * widest * models.bytes_per_weight, logits)} | _dequantized(models)


def update_terms(config: PpoConfig, models: Models, step: StepSizes, device: Device) -> Terms:
    """One pass with gradients, of the policy or the critic, whichever needs more; they follow each other."""
    shape, b = models.base, models.bytes_per_weight
    tokens = step.rows * step.sequence_tokens
    rank = config.model.tuning.rank if isinstance(config.model.tuning, LoraTuning) else 0
    kept = activation_bytes(
        shape,
        tokens,
        bytes_per_number=b,
        adapter_rank=rank,
        probabilities=_keeps_probabilities(b, step.sequence_tokens, device),
        sequence_tokens=step.sequence_tokens,
        is_checkpointed=config.activation_checkpointing,
    )
    logits = logits_bytes(step.rows * step.response_tokens, shape.vocabulary, b)
    return {
        "gradients": gradient_bytes(config, models, accumulates=step.accumulates),
        "activations": kept,
        # The logits are gone when the gradients reach the last layer.
        "logits or last layer": max(logits, backward_bytes(shape, tokens, b)),
    } | _dequantized(models)


def _dequantized(models: Models) -> Terms:
    return {} if models.quantization == "none" else {"dequantized layer": models.widest_linear}


def gradient_bytes(config: PpoConfig, models: Models, *, accumulates: bool) -> int:
    """Gradients that are there while a pass keeps its activations.

    The critic's pass follows the policy's, whose gradients wait for the optimizer step; its own are there, too, where a
    minibatch has several micro-batches. PPO-ptx keeps a copy of the policy's. Sums of several passes are float32.
    """
    policy, critic = trained_elements(config, models)
    has_sums = accumulates or config.algorithm.ptx is not None
    policy_bytes = FLOAT32 if has_sums else _policy_bytes(config, models)
    copies = 1 + (config.algorithm.ptx is not None)
    if config.critic_kind in ("head", "none"):
        return policy * policy_bytes * copies if has_sums else 0
    return policy * policy_bytes * copies + (critic * FLOAT32 if accumulates else 0)


# --- readings of the configuration ------------------------------------------------------------------------------------


def _bytes_of(model: ModelConfig | LearnedModelConfig) -> int:
    return FLOAT32 if model.dtype == "float32" else 2


def _policy_bytes(config: PpoConfig, models: Models) -> int:
    return models.bytes_per_weight if isinstance(config.model.tuning, FullTuning) else FLOAT32


def _critic_bytes(config: PpoConfig, models: Models) -> int:
    return models.bytes_per_weight if config.critic_kind == "model" else FLOAT32


def _optimizer(config: PpoConfig, models: Models, policy: int, critic: int) -> int:
    return optimizer_bytes(policy, _policy_bytes(config, models)) + optimizer_bytes(
        critic, _critic_bytes(config, models)
    )


def _keeps_probabilities(bytes_per_number: int, sequence_tokens: int, device: Device) -> bool:
    return device == "cpu" and bytes_per_number < FLOAT32 and sequence_tokens <= LONGEST_PLAIN_ATTENTION


def _reward_models(config: PpoConfig, base: str) -> Terms:
    """An adapter on the policy's base shares it under LoRA; every other model stands beside it."""
    total = 0
    for model in _learned_models(config):
        source = resolve_source(model.path)
        total += 0 if source.adapter is None else FLOAT32 * adapter_parameters(source.adapter)
        is_shared = source.adapter is not None and source.base == base and isinstance(config.model.tuning, LoraTuning)
        total += 0 if is_shared else model_shape(source.base).parameters * _bytes_of(model)
    return {"reward models": total}


def _learned_models(config: PpoConfig) -> Iterator[LearnedModelConfig]:
    for source in config.reward:
        if isinstance(source, ModelSource):
            yield source
        elif isinstance(source, EnsembleSource):
            yield from source.members


def _added(terms: Terms, more: Terms) -> Terms:
    return {name: terms.get(name, 0) + more.get(name, 0) for name in {**terms, **more}}
