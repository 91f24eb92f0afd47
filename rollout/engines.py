"""From `rollout.engine` to the engine it names. The only place that knows all of them."""

from policies.backbone import Backbone
from policies.config import ModelConfig
from rollout.compiled_engine import CompiledGenerator, is_supported
from rollout.config import CompiledEngineConfig, HfEngineConfig, SamplingConfig, VllmEngineConfig
from rollout.generation import Generator
from rollout.hf_engine import HfGenerator


def build_generator(
    backbone: Backbone,
    adapter: str | None,
    sampling: SamplingConfig,
    engine: CompiledEngineConfig | HfEngineConfig | None = None,
    *,
    version: int = 0,
) -> Generator:
    """An engine that samples from a policy on a backbone; vLLM, which has a model of its own, is `vllm_generator`.

    Args:
        backbone: Model, tokenizer and adapters.
        adapter: Name of the policy's adapter; None samples from the bare model.
        sampling: Temperature, lengths and stop tokens.
        engine: Which one; None takes `compiled`, or `hf` for a model that it cannot decode.
        version: Number of the policy whose weights the backbone holds.

    Raises:
        ValueError: if the engine cannot decode the model, or a stop token is no token of it.
    """
    if engine is None:
        engine = CompiledEngineConfig() if is_supported(backbone.model) else HfEngineConfig()
    if isinstance(engine, HfEngineConfig):
        return HfGenerator(backbone, adapter, sampling, engine, version=version)
    return CompiledGenerator(backbone, adapter, sampling, engine, version=version)


def vllm_generator(model: ModelConfig, sampling: SamplingConfig, engine: VllmEngineConfig) -> Generator:
    """The engine on vLLM; it has no weights before its first update.

    Raises:
        ValueError: if vLLM is not installed, or cannot hold the policy.
    """
    try:
        from rollout.vllm_engine import VllmGenerator  # noqa: PLC0415 - vllm is an optional extra
    except ModuleNotFoundError as error:
        raise ValueError(
            f"rollout.engine.kind=vllm: {error.name} is not installed; install the extra with "
            "`pip install 'rlhf[vllm]'`, or set rollout.engine.kind=compiled"
        ) from error
    return VllmGenerator(model, sampling, engine)
