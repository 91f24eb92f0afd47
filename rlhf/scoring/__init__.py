"""Trained rewards at work outside of a run.

config       configuration of both stages
normalize    `rlhf normalize-reward`: the scale of a model that has none
serve        `rlhf serve-reward`: token, port, start and end of the server
application  the endpoints, and their OpenAPI description
gate         what is refused before a call is read: no token, too large
batching     calls that arrive together -> one forward pass
"""
