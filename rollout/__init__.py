"""Prompts -> sampled responses with provenance. Knows `policies`; knows neither rewards nor training.

`config` how to sample · `types` what travels · `prompts` rows to tokenized prompts, and their resumable order ·
`noise` the random numbers of a sample · `generation` what an engine promises · `hf_engine` the engine on
transformers' `generate`, with `sampler` (the draw) and `kv_cache` (its memory) · `weight_sync` the wire
form and the checks of an update, in `weight_buckets`, from `weight_feed` (the learner's end) to `weight_receiver` (the
sampler's) · `worker` one role on one device · `pool` the fan-out over workers that may be lost, on `calls` (what a
worker is to it), `supervisor` (the waiting) and `job_queue` (the work) · `buffer` rollouts ahead of the learner.
"""
