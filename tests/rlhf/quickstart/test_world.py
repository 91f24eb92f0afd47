import json
import subprocess
import sys

import pytest

from rlhf.quickstart import world
from rlhf.quickstart.gold import is_correct
from rlhf.quickstart.grammar import read_scene

STAGES = [world.pretrain_rows, world.demonstration_rows, world.prompt_rows]


@pytest.mark.parametrize("rows", STAGES)
@pytest.mark.parametrize("split", ["train", "eval"])
def test_rows_are_a_function_of_count_seed_and_split(rows, split):
    assert rows(20, 5, split=split) == rows(30, 5, split=split)[:20]
    assert rows(20, 5, split=split) != rows(20, 6, split=split)
    assert len(rows(20, 5, split=split)) == 20


@pytest.mark.parametrize("rows", STAGES)
def test_rows_are_plain_json(rows):
    assert json.loads(json.dumps(rows(10, 0))) == rows(10, 0)


def test_row_fields_are_those_that_the_stages_read():
    assert set(world.pretrain_rows(1, 0)[0]) == {"text"}
    assert set(world.demonstration_rows(1, 0)[0]) == {"prompt", "completion"}
    assert set(world.prompt_rows(1, 0)[0]) == {"id", "prompt"}


def test_completions_start_with_the_space_that_ends_the_prompt():
    for row in world.demonstration_rows(100, 0):
        assert row["prompt"].endswith("\nanswer:")
        assert row["completion"].startswith(" ")
        assert not row["completion"].startswith("  ")


def test_no_scene_of_the_eval_split_appears_in_any_training_rows():
    def scenes(split):
        prompts = [
            row["prompt"] for rows in (world.prompt_rows, world.demonstration_rows) for row in rows(400, 1, split=split)
        ]
        return {read_scene(prompt.partition("\n")[0]) for prompt in prompts}

    train, held_out = scenes("train"), scenes("eval")
    assert {scene.split for scene in train} == {"train"}
    assert {scene.split for scene in held_out} == {"eval"}
    assert not train & held_out


def test_prompt_ids_are_unique():
    rows = world.prompt_rows(2000, 0)
    assert len({row["id"] for row in rows}) == len(rows)


def test_the_gold_of_a_demonstration_can_be_recomputed_from_its_row():
    for item, row in zip(world.demonstrations(100, 3), world.demonstration_rows(100, 3), strict=True):
        assert world.gold_scores([row["prompt"]], [row["completion"]]) == [
            world.gold_reward(item.question, item.response)
        ]


def test_ranking_rows_carry_the_responses_and_who_ranked_them():
    prompts = [row["prompt"] for row in world.prompt_rows(50, 0)]
    questions = [world.question_from_prompt(prompt) for prompt in prompts]
    responses = [[" mia.", f" {question.answer}.", " happy to help!"] for question in questions]
    rows = world.ranking_rows(prompts, responses, seed=1)
    assert rows == world.ranking_rows(prompts, responses, seed=1)
    assert json.loads(json.dumps(rows)) == rows
    assert set(rows[0]) == {"prompt", "responses", "ranking", "labeler"}
    assert len({row["labeler"] for row in rows}) > 1
    firsts = [row["responses"][row["ranking"][0][0]] for row in rows]
    assert sum(is_correct(question, first) for question, first in zip(questions, firsts, strict=True)) > 35


def test_ranking_rows_refuse_lists_of_unequal_length():
    with pytest.raises(ValueError, match="prompts has 1 items and responses 0"):
        world.ranking_rows(["a"], [], seed=0)


def test_the_world_imports_nothing_heavy():
    heavy = "torch transformers trl datasets numpy ray"
    check = f"import sys, rlhf.quickstart.world; print(set('{heavy}'.split()) & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, text=True).stdout
    assert found.strip() == "set()"
