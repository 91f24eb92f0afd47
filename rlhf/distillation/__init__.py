"""Distillation: a smaller model learns from a larger one.

lesson     what the loop asks of teacher, student and data, whatever they are
cutting    one cut, made on a model
chunks     soft targets in bounded memory
policies   language models: logits or samples of the teacher
rewards    reward models: scores of the teacher
loop       cuts, recovery training, checkpoints
stage      `rlhf distill`
"""
