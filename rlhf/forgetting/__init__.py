"""Forgetting: what a model that learns task after task still knows, and what fine-tuning can do about it.

replay          old examples among the new ones
old_model       the divergence from the model before training, as a part of the loss
weight_anchor   the pull of weights towards their start, as a part of the gradient
task_sequence   `rlhf forgetting`: tasks in a row, several ways, several seeds
matrices        the scores of a sequence, and their summary
page            the report and the table on the terminal
"""
