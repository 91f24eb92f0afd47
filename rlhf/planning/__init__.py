"""`rlhf plan` and `--dry-run`: where a run would live and how much memory it would need, before anything is loaded.

command          wording and tables
memory_plan      a PPO run, process by process and phase by phase
training_memory  stages with one model and one optimizer
memory_terms     the formula of each term
adapter_sizes    how many weights each tuning method adds
"""
