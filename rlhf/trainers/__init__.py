"""The training loops, one a stage, each with `run(config, *, resume)` for the command line.

pretrain   text -> a causal language model
sft        demonstrations -> a model that answers (TRL's SFTTrainer behind one adapter)
dpo        ranked responses -> an aligned policy without a reward model (TRL's DPOTrainer behind one adapter)
reward     ranked responses -> a reward model; with `reward_selection`, `reward_outcome`, `reward_ensemble`
ppo        prompts and a reward -> an aligned policy (PPO and PPO-ptx)
"""
