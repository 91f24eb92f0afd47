"""Prompts -> sampled responses with provenance. Knows `policies`; knows neither rewards nor training.

`config` how to sample · `types` what travels · `prompts` rows to tokenized prompts, and their resumable order ·
`noise` the random numbers of a sample · `generation` what an engine promises · `engines` which one a config names ·
`responses` (with `stopping`) and `sampler` what all of them share: where a response ends, and the draw ·
`sampled_policy` the weights of those on a backbone · `hf_engine` the engine on transformers' `generate`, with
`kv_cache` (its memory) · `compiled_engine` the engine in slots: `lanes` (threads), `prefill` (prompts),
`continuous` (the loop), `slot_cache`, `packed_linear` and `decode_attention` (what makes a step fast) ·
`vllm_engine`, with `vllm_sampler` · `weight_sync` the wire form and the checks of an update, in `weight_buckets`, from
`weight_feed` (the learner's end) to `weight_receiver` (the sampler's) · `worker` one role on one device · `pool` the
fan-out over workers that may be lost, on `calls` (what a worker is to it), `supervisor` (the waiting) and `job_queue`
(the work) · `buffer` rollouts ahead of the learner.
"""
