"""Where a run's metrics go, one place a file.

- `sink`: what such a place must take. `guard`: keeps one that fails from stopping the run.
- `jsonl`: the run folder, the record. `weights_and_biases`, `tensorboard`, `mlflow`: copies elsewhere.

The terminal's sinks are `rlhf.runtime.console` and `rlhf.runtime.live_view`.
"""
