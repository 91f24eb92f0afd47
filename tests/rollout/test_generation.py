from rollout.generation import repeat_prompts
from tests.rollout.fakes import prompt_of


def test_each_prompt_stands_once_for_each_of_its_responses() -> None:
    a, b = prompt_of("a"), prompt_of("b")
    prompts, indices = repeat_prompts([a, b], 3)
    assert prompts == [a, a, a, b, b, b]
    assert indices == [0, 1, 2, 0, 1, 2]


def test_a_prompt_that_occurs_again_gets_new_response_indices() -> None:
    a, b = prompt_of("a"), prompt_of("b")
    prompts, indices = repeat_prompts([a, b, a], 2)
    assert [prompt.id for prompt in prompts] == ["a", "a", "b", "b", "a", "a"]
    assert indices == [0, 1, 0, 1, 2, 3]
