"""What surrounds a training loop: where a run lives, what it reports, how it resumes, which machines it uses.

- `config`: tracking, checkpoints, placement.
- `run_folder`: the files of one run; exclusive, append-only, safe to kill. `json_lines` is its text format,
  `environment` the versions it records.
- `metric_registry`: every metric's key, unit and meaning. `metrics`: from the loop to the `sinks`, one a tracker.
  `terminal` chooses between `console`, a line a step, and `live_view`, which stays in place.
- `lineage`: what a run was made from and what it made, by checksum.
- `health`: rules over the metrics that say what goes wrong and what to do.
- `placement`: who lives where; `cluster` starts it in Ray; `workers` is how the driver talks to it.
- `distributed`: the ranks of one model, and their sums; `rank_actors`: one answer of all of them.
- `training_state`: checkpoints of a whole training state.
"""
