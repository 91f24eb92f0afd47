"""Instruction tuning: rows of many tasks -> demonstrations in the words of templates, and tasks kept from training.

config     templates, mixing, held-out clusters and how they are asked
templates  a row in the words of a template
mixing     how many examples of each task: caps and temperature
mixture    rows -> demonstrations for `rlhf sft`, and held-out tasks
held_out   the held-out tasks before and after training
"""
