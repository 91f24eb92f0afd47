from rlhf.evaluation.tasks import read_task
from rlhf.quickstart.sets import embedded_rows
from rlhf.quickstart.world import gold_reward_from_text


def test_the_right_choice_is_the_one_that_the_gold_reward_likes_best():
    rows = embedded_rows("choices-eval")
    assert len(rows) == 200
    for row in rows:
        scores = [gold_reward_from_text(f"{row['question']}\nanswer:", f" {choice}.") for choice in row["choices"]]
        assert max(range(4), key=scores.__getitem__) == row["answer"]
    assert {row["answer"] for row in rows} == {0, 1, 2, 3}


def test_the_set_is_a_task():
    task = read_task(embedded_rows("choices-eval"), source="quickstart/choices-eval")
    assert (task.name, task.kind, len(task.rows)) == ("choices-eval", "multiple_choice", 200)
