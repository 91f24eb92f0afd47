"""Algorithms and loops: everything that turns models, rewards and rollouts into an aligned policy.

cli                   arguments -> config -> stage
cli_help              the texts it shows
exit_status           how a command ends: exit code and line
stages                the registry of stages
config                one config class a stage, composed from the packages' own
configuration         YAML + a.b=value -> frozen config
process_environment   variables set before any heavy library loads
algorithms            pure tensor functions, one concept a file
experience            rollouts + scores + values + reference log-probs -> advantages and returns
roles, role_groups    the four roles as plain classes; where a placement puts them
learner_group         several ranks of the learner behind one handle; row_shares: which rows a rank computes
stage_ranks           pretraining and reward models on several ranks; gradient_sums: what they add up
learner, critic       micro-batches, accumulation, clipping, optimizer steps; what a critic starts from
optimization          optimizer, schedule, and the step that refuses what is not finite
compute_precision     the dtype of a forward pass
data                  rows from files, the hub or the embedded world
corpus                collected text -> text to pretrain on
tokenizer_comparison  tokenizers on the same text, and the loss per byte of a small model with each
sequence_filling      which documents share a sequence; loss_spikes: which loss stands out
span_corruption       text -> input with sentinels and target; text_to_text_answers: what an encoder-decoder answers
instructions          rows of many tasks -> demonstrations by templates, and held-out tasks
conversations         chat data -> token ids + loss mask
text_stream           pretraining text -> packed sequences, resumable
trainers              one loop a stage
runtime               run folder, metrics, checkpoints, cluster
rankings              scores, votes and battles -> rankings or weighted pairs
classification        labels for texts: patterns and words, heads; ways of tuning compared
distillation          a smaller model learns from a larger one
evaluation            models on the same held-out prompts: who wins, how sure that is, what it cost
judges                independent reward functions
generate, export      look at a model; merge it into a plain folder
plan, memory_plan     what `--dry-run` prints: placement, and memory by arithmetic (memory_terms: its formulas)
reports               pages that a run leaves behind
dashboard             the W&B workspace of a project, as code
scoring               trained rewards outside of a run: their scale, and a server of scores
quickstart            the embedded world and the whole chain on it
"""

__version__ = "0.1.0"
