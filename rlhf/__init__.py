"""Algorithms and loops: everything that turns models, rewards and rollouts into an aligned policy.

cli                   arguments -> config -> stage
cli_help              the texts it shows
exit_status           how a command ends: exit code and line
stages                the registry of stages
config                one config class a stage, composed from the packages' own
config_loader         YAML + a.b=value -> frozen config
config_yaml           the YAML dialect of configs
config_fields         what a config class holds
config_errors         validation errors in a config writer's words
process_environment   variables set before any heavy library loads
algorithms            pure tensor functions, one concept a file
experience            rollouts + scores + values + reference log-probs -> advantages and returns
learner               micro-batches, accumulation, clipping, optimizer steps
data                  rows from files, the hub or the embedded world
trainers              one loop a stage
runtime               run folder, metrics, checkpoints, cluster
evaluation            two models on the same held-out prompts
quickstart            the embedded world and the whole chain on it
"""

__version__ = "0.1.0"
