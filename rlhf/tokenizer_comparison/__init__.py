"""`rlhf tokenizers`: what tokenizers make of the same text.

config    which tokenizers, on which text, and the small model that is trained with each
measures  fertility, bytes a token, unknown rate and round trip, on held-out text
trial     a small model trained on the same text with each tokenizer, and its held-out loss per byte
command   files and the run folder
page      words and layout
"""
