"""Reward functions that tests name by `module:function`."""

NOT_A_FUNCTION = 1


def prompt_share(prompts, responses, *, scale):
    """Length of the prompt over that of the response."""
    return [scale * len(p) / len(r) for p, r in zip(prompts, responses, strict=True)]


def gaps(prompts, responses):
    """The response as a number; `none` has no score."""
    return [None if response == "none" else float(response) for response in responses]


def too_few(prompts, responses):
    """One number, however many were asked for."""
    return [1.0]


def one_number(prompts, responses):
    """No list at all."""
    return 0.5


def words(prompts, responses):
    """Texts instead of numbers."""
    return ["good"] * len(responses)
