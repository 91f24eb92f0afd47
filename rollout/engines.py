"""From `rollout.engine` to the engine it names. The only place that knows all of them."""

from policies.loading import Backbone
from rollout.compiled_engine import CompiledGenerator, is_supported
from rollout.config import CompiledEngineConfig, EngineConfig, HfEngineConfig, SamplingConfig
from rollout.generation import Generator
from rollout.hf_engine import HfGenerator


def build_generator(
    backbone: Backbone,
    adapter: str | None,
    sampling: SamplingConfig,
    engine: EngineConfig | None = None,
    *,
    version: int = 0,
) -> Generator:
    """An engine that samples from a policy.

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
