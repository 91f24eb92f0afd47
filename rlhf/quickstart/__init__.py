"""The embedded world of `rlhf quickstart`: a tiny story-and-answer language whose true reward is known.

vocabulary (the words), grammar (scenes and how they are told), questions (prompts, and back), documents (pretraining
texts), writers (the mixture behind the demonstrations), gold (the hidden preference), labelers (noisy people who rank
by it), world (all of it as data sets; start there).
"""
