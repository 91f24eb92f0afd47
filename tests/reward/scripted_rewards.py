"""Reward functions that tests name by `module:function`."""

NOT_A_FUNCTION = 1


def prompt_share(prompts, responses, *, scale):
    """Length of the prompt over that of the response."""
    return [scale * len(p) / len(r) for p, r in zip(prompts, responses, strict=True)]


def gaps(prompts, responses):
    """The response as a number; `none` has no score."""
    answers = {"none": None}
    return [answers.get(response, response) for _, response in zip(prompts, responses, strict=True)]


def too_few(prompts, responses):
    """One number less than responses."""
    return [0.5 for _ in zip(prompts[1:], responses[1:], strict=True)]


def one_number(prompts, responses):
    """No list at all."""
    return len(prompts) / len(responses) / 2


def words(prompts, responses):
    """Texts instead of numbers."""
    return [f"{p}{r}" for p, r in zip(prompts, responses, strict=True)]
