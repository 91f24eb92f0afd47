"""Prompts -> sampled responses with provenance. Knows `policies`; knows neither rewards nor training.

`config` how to sample · `types` what travels · `prompts` rows to tokenized prompts, and their resumable order ·
`noise` the random numbers of a sample · `generation` what an engine promises · `hf_engine` the engine on
transformers' `generate`, with `sampler` (the draw) and `kv_cache` (its memory) · `weight_sync` verified weight
updates · `worker` one role on one device · `pool` the fan-out over workers.
"""
