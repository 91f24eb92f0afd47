"""Rules over a run's metrics that say, in plain words, what goes wrong and what to do.

- `rule`: what a rule and an alert are. `history`: the recent numbers that rules read. `findings`: their sentences.
- `ppo_update`, `ppo_drift`, `ppo_reward`: the rules of PPO. `training`: those of the other stages, and of every stage.
- `catalogue`: which rules a stage gets. `monitor`: runs them after each step; an alert once an episode of trouble.
"""
