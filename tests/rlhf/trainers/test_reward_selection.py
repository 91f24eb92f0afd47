import pytest
import torch

from reward.evaluation import PairEvaluation
from reward.preferences import Comparison
from rlhf.runtime.training_state import TrainingState
from rlhf.trainers.reward_selection import BestWeights, halves, selection_summary


def about(prompt):
    return Comparison(prompt, ("a", "b"), ((0,), (1,)), "")


def result(loss, accuracy):
    return PairEvaluation(accuracy, accuracy, accuracy, 0.0, loss, comparisons=1, pairs=1)


def test_the_halves_share_no_prompt_and_lose_none():
    held_out = [about(f"prompt {number // 3}") for number in range(21)]

    chooses, reports = halves(held_out)

    assert (len(chooses), len(reports)) == (9, 12)
    assert sorted([*chooses, *reports]) == list(range(21))
    assert not {place // 3 for place in chooses} & {place // 3 for place in reports}


def test_comparisons_without_a_prompt_are_parted_one_by_one():
    assert [len(side) for side in halves([about("")] * 3)] == [1, 2]


def test_one_prompt_cannot_be_parted():
    with pytest.raises(ValueError, match=r"one prompt.*set weights=last and calibrate=none"):
        halves([about("p"), about("p")])


@pytest.mark.parametrize(("rule", "kept"), [("lowest_loss", 2), ("highest_accuracy", 1), ("last", None)])
def test_the_first_of_the_best_evaluations_is_kept(rule, kept):
    best, weight = BestWeights(rule), torch.zeros(1)

    for step, (loss, accuracy) in enumerate([(0.9, 0.4), (0.7, 0.8), (0.5, 0.6), (0.5, 0.8)]):
        weight.fill_(float(step))
        best.consider(step, result(loss, accuracy), {"w": weight})

    assert best.step == kept
    assert {name: tensor.item() for name, tensor in best.tensors.items()} == ({} if kept is None else {"w": kept})


def test_what_a_checkpoint_holds_continues_the_search():
    first, second = BestWeights("lowest_loss"), BestWeights("lowest_loss")
    first.consider(3, result(0.5, 0.5), {"w": torch.tensor([7.0])})
    tensors, values = first.state()

    second.restore(TrainingState(4, {"model.w": torch.zeros(1), **tensors}, values))
    second.consider(5, result(0.6, 0.9), {"w": torch.tensor([9.0])})

    assert (second.step, second.tensors["w"].item()) == (3, 7.0)
    assert BestWeights("last").state() == ({}, {})


def test_the_summary_names_the_best_by_each_rule_and_what_was_kept():
    rows = [
        {"step": step, "rm/eval_loss": loss, "rm/eval_accuracy": accuracy}
        for step, loss, accuracy in ((2, 0.6, 0.5), (4, 0.4, 0.6), (6, 0.8, 0.7))
    ]

    found = selection_summary("lowest_loss", 4, rows)

    assert found["lowest_loss"] == {"step": 4, "loss": 0.4, "accuracy": 0.6}
    assert found["highest_accuracy"]["step"] == found["last"]["step"] == 6
    assert (found["kept_step"], found["evaluations"]) == (4, 3)
    assert selection_summary("last", 6, []) == {"rule": "last", "kept_step": 6}
