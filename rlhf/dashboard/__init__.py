"""`rlhf dashboard`: the W&B workspace of a project, as code.

- `layout`: which plots, in which order, from the metric registry. `views`: what each saved view is for.
- `workspace`: both as W&B's view specification, and its sending. `command`: the stage. `config`: its settings.
"""
