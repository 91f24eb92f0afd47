"""The roles of PPO in one process: any subset of rollout, reward, reference and learner on ONE base model.

A plain class that a test can build without Ray; `rlhf.role_groups` places it. Owns wiring only: what a role computes
stands in `rollout`, `reward`, `policies` and `rlhf.learner`.
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch

from policies.causal import CausalPolicy
from policies.checkpoint import save_model
from policies.config import LoraTuning
from policies.loading import REFERENCE_ADAPTER, load_backbone, prepare_policy, resolve_device
from policies.reference import ReferencePolicy
from policies.sharding import whole, whole_tensors
from policies.tokenization import load_tokenizer
from policies.value import ValueModel
from reward.composite import build_reward
from reward.worker import RewardWorker
from rlhf.config import PpoConfig, PpoDataConfig
from rlhf.config.retention import EwcRetention
from rlhf.conversations import Example
from rlhf.critic import build_critic
from rlhf.data import load_rows
from rlhf.experience import Experience
from rlhf.forgetting.replay import old_examples
from rlhf.learner import Learner
from rlhf.runtime.broadcast_group import BroadcastGroup
from rlhf.runtime.config import SplitPlacement
from rlhf.runtime.distributed import ALONE, MeetingPoint, Ranks
from rlhf.runtime.memory import peak_memory_mib, release_free_memory
from rlhf.runtime.placement import RoleName
from rlhf.runtime.training_state import TrainingState
from rlhf.text_stream import TextStream, require_texts
from rollout.config import VllmEngineConfig
from rollout.engines import build_generator, vllm_generator
from rollout.flat_bucket import Manifest, flatten_bucket
from rollout.types import Completion, PerToken, Prompt, TokenIds
from rollout.weight_broadcast import BroadcastError
from rollout.weight_buckets import pack_bucket
from rollout.weight_sync import Ack, UpdateHeader, WeightUpdate
from rollout.worker import RolloutWorker

logger = logging.getLogger(__name__)

_DECODE_TOLERANCE_FLOAT32 = 1e-3
_DECODE_TOLERANCE = 0.5
"""Nats between decoding and a forward pass over the same tokens. In 16 bits one improbable token may be far off; a
stale cache is off by nats."""


class RoleHost:
    """Some of the roles in one process, on one base model.

    Its methods are the roles' methods; calling one of a role that was not built is a bug of the driver.

    Args:
        config: The run's configuration.
        roles: Which ones to build.
        threads: torch threads of this process; None leaves torch's own choice.
        ranks: The learner's, where it is one of several; all of them are called alike (`rlhf.learner_group`).
    """

    def __init__(
        self, config: PpoConfig, roles: Sequence[RoleName], *, threads: int | None = None, ranks: Ranks = ALONE
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self._config, self._ranks = config, ranks
        self._is_sharded = not ranks.is_alone and _shards_layers(config)
        self._packed: WeightUpdate | None = None
        self._flat: torch.Tensor | None = None
        self._meeting_point: MeetingPoint | None = None
        self._broadcast_group: BroadcastGroup | None = None
        engine = config.rollout.engine
        if "rollout" in roles and isinstance(engine, VllmEngineConfig):
            self._rollout = RolloutWorker(vllm_generator(config.model, config.rollout.sampling, engine))
            roles = [role for role in roles if role != "rollout"]
        # What is too large for one device is cut on its way there.
        device = "cpu" if self._is_sharded else None
        backbone = load_backbone(config.model, device=device) if set(roles) - {"reward"} else None
        if "reward" in roles:
            tokenizer = backbone.tokenizer if backbone is not None else load_tokenizer(config.model)
            # A base that trains would change under the reward model's adapter.
            shared = backbone if isinstance(config.model.tuning, LoraTuning) else None
            self.score = RewardWorker(
                build_reward(config.reward, policy_tokenizer=tokenizer, shared_backbone=shared)
            ).score
        if backbone is None:
            return
        self._backbone = backbone
        self._adapter = prepare_policy(backbone, config.model.tuning, seed=config.seed)
        if "reference" in roles:
            self._reference = self._build_reference(trains_here="learner" in roles)
        if "learner" in roles:
            self._learner = self._build_learner()
        if "rollout" in roles:
            assert not isinstance(engine, VllmEngineConfig), "vLLM has been built above"
            generator = build_generator(backbone, self._adapter, config.rollout.sampling, engine)
            self._rollout = RolloutWorker(
                generator,
                self._causal_policy(),
                decode_tolerance=_DECODE_TOLERANCE_FLOAT32 if config.model.dtype == "float32" else _DECODE_TOLERANCE,
            )

    def _build_reference(self, *, trains_here: bool) -> ReferencePolicy:
        temperature = self._config.rollout.sampling.temperature
        if trains_here:
            return ReferencePolicy.at_start(self._backbone, self._config.model.tuning, temperature=temperature)
        # Nothing in this process moves the backbone, so full tuning elsewhere needs no second copy here.
        adapter = REFERENCE_ADAPTER if REFERENCE_ADAPTER in self._backbone.adapters.names else None
        return ReferencePolicy(self._backbone, adapter=adapter, temperature=temperature)

    def _build_learner(self) -> Learner:
        config, ptx = self._config, None
        if config.algorithm.ptx is not None:
            texts, _ = pretraining_texts(config.data)
            ptx = TextStream(
                texts,
                self._backbone.tokenizer,
                sequence_tokens=config.algorithm.ptx.sequence_tokens,
                seed=config.seed,
                packing=config.algorithm.ptx.packing,
            )
        critic = build_critic(config, self._backbone, policy_adapter=self._adapter) if config.has_critic else None
        self._ranks.require_same(f"the model in model.path={config.model.path}", lambda: self._backbone.fingerprint)
        if self._is_sharded:
            self._shard(critic)
        return Learner(
            self._causal_policy(), critic, config=config, ptx=ptx, old=self._old_examples(), ranks=self._ranks
        )

    def _old_examples(self) -> list[Example]:
        """Those of `algorithm.retention.data`; none without."""
        config, retention = self._config, self._config.algorithm.retention
        if not isinstance(retention, EwcRetention) or retention.data is None:
            return []
        context, budget = self._backbone.context_tokens, config.micro_batch_tokens
        found = old_examples(
            retention.data,
            self._backbone.tokenizer,
            max_tokens=min(context, budget),
            on_bad_row=config.data.on_bad_row,
            chat_template=config.model.chat_template,
            field="algorithm.retention.data",
            limit="micro_batch_tokens" if budget < context else "the model's context",
        )
        for line in found.skipped:
            logger.warning("skipped %s", line)
        return found.examples

    def _shard(self, critic: ValueModel | None) -> None:
        device = resolve_device(self._config.model.device)
        for backbone in {self._backbone, *(() if critic is None else (critic.backbone,))}:
            backbone.shard(device)
        if critic is not None:
            critic.head.to(device)

    def _causal_policy(self) -> CausalPolicy:
        temperature = self._config.rollout.sampling.temperature
        return CausalPolicy(self._backbone, adapter=self._adapter, temperature=temperature)

    def context_tokens(self) -> int:
        """Longest sequence that the model reads, prompt and response, in tokens."""
        return self._backbone.context_tokens

    # rollout

    def generate(
        self, prompts: Sequence[Prompt], response_indices: Sequence[int], *, seed: int, step: int, expected_version: int
    ) -> list[Completion]:
        """See `rollout.worker.RolloutWorker.generate`."""
        return self._rollout.generate(
            prompts, response_indices, seed=seed, step=step, expected_version=expected_version
        )

    def apply_update(self, update: WeightUpdate) -> Ack:
        """See `rollout.worker.RolloutWorker.apply_update`."""
        return self._rollout.apply_update(update)

    def receive_broadcast(self, manifest: Manifest) -> Ack:
        """Takes the learner's next broadcast into the engine; see `rollout.worker.RolloutWorker.apply_flat`."""
        return self._rollout.apply_flat(manifest, self._group_to_broadcast().receive(manifest.buffer_bytes))

    def adopt_version(self, version: int) -> None:
        """The learner in this process has moved the very weights that are sampled from: they are `version` now."""
        self._rollout.adopt_version(version)

    def canary(self, prompts: Sequence[TokenIds], responses: Sequence[TokenIds]) -> list[PerToken]:
        """Log-probs by the weights that rollout samples from; compared with the learner's after every sync."""
        return self._rollout.canary(prompts, responses)

    # reference

    def reference_logprobs(self, prompts: Sequence[TokenIds], responses: Sequence[TokenIds]) -> list[PerToken]:
        """(R_i,) log-probs of each response under the frozen reference, nats."""
        return self._reference.logprobs(prompts, responses, self._config.micro_batch_tokens)

    # learner

    def values(self, prompts: Sequence[TokenIds], responses: Sequence[TokenIds]) -> list[PerToken]:
        """See `Learner.values`."""
        return self._learner.values(prompts, responses)

    def logprobs(self, prompts: Sequence[TokenIds], responses: Sequence[TokenIds]) -> list[PerToken]:
        """See `Learner.logprobs`."""
        return self._learner.logprobs(prompts, responses)

    def update(self, experience: Experience, *, step: int) -> dict[str, float]:
        """See `Learner.update`; adds the peak memory of this process, or of the rank that needs most."""
        release_free_memory()
        metrics = self._learner.update(experience, step=step)
        peak = torch.tensor(peak_memory_mib(self._backbone.device), dtype=torch.float64)
        self._ranks.maximum(peak)
        return metrics | {"perf/peak_memory_mib": peak.item()}

    def perplexity(self, texts: Sequence[str]) -> float:
        """See `Learner.perplexity`."""
        return self._learner.perplexity(texts)

    def pack_update(self, version: int, bucket: int, bucket_bytes: int) -> UpdateHeader:
        """Packs a bucket of the policy's weights as they stand, and keeps it for `packed_update`."""
        settings = self._causal_policy().settings()
        self._packed = pack_bucket(
            self._learner.publish(), version, bucket, bucket_bytes=bucket_bytes, settings=settings, complete=whole
        )
        return self._packed.header

    def packed_update(self) -> WeightUpdate:
        """Hands out what `pack_update` has packed, once."""
        packed, self._packed = self._packed, None
        assert packed is not None, "packed_update follows pack_update"
        return packed

    def open_broadcast(self, timeout_seconds: float) -> str:
        """Lets rollout workers into a new group for `broadcast_update`; returns the address to `join_broadcast`."""
        self._meeting_point = MeetingPoint.on_this_node(timeout_seconds=timeout_seconds)
        return self._meeting_point.address

    def join_broadcast(self, address: str, rank: int, count: int, timeout_seconds: float) -> None:
        """Enters the group in which rank 0, the learner, broadcasts; leaves the one before."""
        self._broadcast_group = None
        self._broadcast_group = BroadcastGroup(
            address, rank, count, device=self._backbone.device, timeout_seconds=timeout_seconds
        )

    def flatten_update(self, version: int, bucket: int, bucket_bytes: int) -> Manifest:
        """As `pack_update`, into a buffer on the device, kept for `broadcast_update`."""
        manifest, flat = flatten_bucket(
            self._learner.publish(),
            version,
            bucket,
            bucket_bytes=bucket_bytes,
            settings=self._causal_policy().settings(),
            complete=whole,
        )
        self._flat = flat if self._ranks.is_first else None
        return manifest

    def broadcast_update(self) -> None:
        """Sends what `flatten_update` has laid out to every other member of the group, once."""
        flat, self._flat = self._flat, None
        assert flat is not None, "broadcast_update follows flatten_update"
        self._group_to_broadcast().send(flat)

    def _group_to_broadcast(self) -> BroadcastGroup:
        if self._broadcast_group is None:
            raise BroadcastError("this process is in no group that broadcasts weights")
        return self._broadcast_group

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """See `Learner.state`."""
        return self._learner.state()

    def load_state(self, state: TrainingState) -> None:
        """See `Learner.load_state`."""
        self._learner.load_state(state)

    def save_model(self, folder: str) -> None:
        """Writes the policy: an adapter folder, or a full model folder. Of several ranks the first one writes."""
        metadata = {"stage": "ppo", "started_from": self._config.model.path}
        tensors = None
        if self._adapter is None and self._is_sharded:
            tensors = whole_tensors(self._backbone.model.state_dict(), keep=self._ranks.is_first)
        if not self._ranks.is_first:
            return
        if self._adapter is None:
            save_model(folder, self._backbone.model, self._backbone.tokenizer, metadata, tensors=tensors)
        else:
            self._backbone.adapters.save(self._adapter, folder, tokenizer=self._backbone.tokenizer, metadata=metadata)


def _shards_layers(config: PpoConfig) -> bool:
    return isinstance(config.placement, SplitPlacement) and config.placement.learner.sharding == "full"


def pretraining_texts(data: PpoDataConfig) -> tuple[list[str], list[str]]:
    """Texts of `data.pretrain`, none where it is null, and one line for each row that `on_bad_row=skip` left out.

    Raises:
        ValueError: a row without text, where `on_bad_row` is "error".
    """
    if data.pretrain is None:
        return [], []
    rows = load_rows(data.pretrain, field="data.pretrain")
    return require_texts(rows, source=f"data.pretrain={data.pretrain}", on_bad_row=data.on_bad_row)
