"""The loss of a step and its gradient: what each configuration means, and what it refuses."""

import math
from typing import Any

import pytest
import torch

from policies.config import ModelConfig
from reward.model import RewardModel
from reward.preference_batch import encode_comparisons
from reward.preferences import Comparison, ComparisonSet
from reward.scoring import score_sequences
from rlhf.config import RewardConfig
from rlhf.trainers.reward_objective import RewardObjective

PAIR = Comparison("the cat", (" sat", " ran to the tree"), ((1,), (0,)), "rows, row 0", strengths=(0.5, 2.0))
RANKED = Comparison(
    "", ("a", "the dog", "the rain"), ((2,), (0, 1)), "rows, row 1", weight=3.0, strengths=(1.0, 1.0, 4.0)
)
SOFT = Comparison("a dog", (" ran", " sat"), ((0,), (1,)), "rows, row 2", win_probability=0.75, strengths=(1.0, 0.0))
ALL = (PAIR, RANKED, SOFT)
CERTAIN = (PAIR, RANKED)


@pytest.fixture
def model(tiny_llama_folder):
    return RewardModel.new(ModelConfig(path=str(tiny_llama_folder), device="cpu"), seed=0)


def encoded(model, comparisons):
    found = ComparisonSet(list(comparisons), [])
    return encode_comparisons(found, model.tokenizer, max_tokens=64, source="rows", on_bad_row="error").comparisons


def objective(model, comparisons, loss: dict[str, Any], **options):
    settings = {"run_dir": "unused", "model": {"path": "unused"}, "data": {"train": "unused"}}
    config = RewardConfig.model_validate(settings | {"compute_dtype": "float32", "loss": loss} | options)
    return RewardObjective(model, config, encoded(model, comparisons))


def step(model, comparisons, loss: dict[str, Any], **options):
    model._model.zero_grad(set_to_none=True)
    metrics = objective(model, comparisons, loss, **options).backward(encoded(model, comparisons))
    return metrics, {name: parameter.grad.clone() for name, parameter in model.trainable()}


@torch.no_grad()
def scores_of(model, comparisons):
    return [score_sequences(model, found.sequences, token_budget=100).tolist() for found in encoded(model, comparisons)]


def cost(difference, target=1.0):
    return target * math.log1p(math.exp(-difference)) + (1 - target) * math.log1p(math.exp(difference))


def test_the_default_is_the_mean_over_the_pairs_of_a_prompt_of_its_weight_and_its_probability(model):
    pair, ranked, soft = scores_of(model, ALL)

    metrics, _ = step(model, ALL, {"kind": "pairwise_logistic"})

    of_ranked = (cost(ranked[2] - ranked[0]) + cost(ranked[2] - ranked[1])) / 2
    mean_weight = (1 + 3 + 1) / 3
    expected = (cost(pair[1] - pair[0]) + 3 * of_ranked + cost(soft[0] - soft[1], 0.75)) / (3 * mean_weight)
    assert metrics["rm/loss"] == pytest.approx(expected, rel=1e-5)
    flat = torch.tensor([*pair, *ranked, *soft])
    assert metrics["rm/score_mean"] == pytest.approx(flat.mean().item(), rel=1e-4)
    assert metrics["rm/score_std"] == pytest.approx(flat.std(correction=0).item(), rel=1e-4)
    assert metrics.keys() == {"rm/loss", "rm/accuracy", "rm/margin", "rm/score_mean", "rm/score_std"}


def test_ties_margins_smoothing_and_centring_reach_the_loss(model):
    pair, ranked = scores_of(model, CERTAIN)
    loss = {
        "kind": "pairwise_logistic",
        "ties": "half",
        "margin_coefficient": 0.5,
        "label_smoothing": 0.1,
        "centering_coefficient": 0.01,
    }

    metrics, _ = step(model, CERTAIN, loss)

    leads = [pair[1] - pair[0] - 0.75, ranked[2] - ranked[0] - 1.5, ranked[2] - ranked[1] - 1.5]
    costs = [cost(lead, 0.9) for lead in leads] + [cost(ranked[0] - ranked[1], 0.5)]
    penalty = (sum(pair) ** 2 + (2 * sum(ranked) / 3) ** 2) / 2
    expected = (costs[0] + 3 * sum(costs[1:]) / 3) / (2 * 2) + 0.01 * penalty
    assert metrics["rm/loss"] == pytest.approx(expected, rel=1e-5)
    assert metrics["rm/centering"] == pytest.approx(penalty, rel=1e-5)


def test_plackett_luce_reads_rankings_as_choices(model):
    pair, ranked = scores_of(model, CERTAIN)

    metrics, _ = step(model, CERTAIN, {"kind": "plackett_luce"})

    choice = -math.log(math.exp(ranked[2]) / sum(map(math.exp, ranked)))
    assert metrics["rm/loss"] == pytest.approx((cost(pair[1] - pair[0]) + 3 * choice) / (2 * 2), rel=1e-5)


@pytest.mark.parametrize("loss", [{"kind": "pairwise_logistic", "ties": "half"}, {"kind": "plackett_luce"}])
@pytest.mark.parametrize("shares_prefixes", [True, False])
def test_micro_batches_change_neither_metrics_nor_gradient(model, loss, shares_prefixes):
    model.shares_prefixes = shares_prefixes
    whole_metrics, whole = step(model, CERTAIN, loss | {"centering_coefficient": 0.1})

    split_metrics, split = step(model, CERTAIN, loss | {"centering_coefficient": 0.1}, micro_batch_tokens=8)

    assert split_metrics == pytest.approx(whole_metrics, rel=1e-4, abs=1e-5)
    for name, gradient in whole.items():
        torch.testing.assert_close(split[name], gradient, rtol=1e-3, atol=1e-5)


def test_reading_the_prompt_once_changes_neither_metrics_nor_gradient(model):
    shared_metrics, shared = step(model, ALL, {"kind": "pairwise_logistic"})
    model.shares_prefixes = False

    metrics, gradients = step(model, ALL, {"kind": "pairwise_logistic"})

    assert metrics == pytest.approx(shared_metrics, rel=1e-5, abs=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(shared[name], gradient, rtol=1e-4, atol=1e-5)


def test_the_unit_of_weights_does_not_matter(model):
    tenfold = [
        Comparison(c.prompt, c.responses, c.ranking, c.source, weight=10 * c.weight, strengths=c.strengths)
        for c in CERTAIN
    ]

    assert step(model, tenfold, {"kind": "plackett_luce"})[0] == pytest.approx(
        step(model, CERTAIN, {"kind": "plackett_luce"})[0], rel=1e-5
    )


@pytest.mark.parametrize("shares_prefixes", [True, False])
def test_bfloat16_stays_near_float32_and_weights_and_gradients_stay_float32(model, shares_prefixes):
    model.shares_prefixes = shares_prefixes
    exact_metrics, exact = step(model, ALL, {"kind": "pairwise_logistic"})

    metrics, gradients = step(model, ALL, {"kind": "pairwise_logistic"}, compute_dtype="bfloat16")

    assert metrics["rm/loss"] != exact_metrics["rm/loss"]
    assert metrics["rm/loss"] == pytest.approx(exact_metrics["rm/loss"], rel=0.05)
    assert all(gradient.dtype == torch.float32 for gradient in gradients.values())
    for name, gradient in exact.items():
        assert (gradients[name] - gradient).norm() < 0.2 * gradient.norm() + 1e-3, name


UNKNOWN = Comparison("p", ("a", "b"), ((0,), (1,)), "rows, row 7")
CONTRADICTION = Comparison("p", ("a", "b"), ((0,), (1,)), "rows, row 8", strengths=(0.0, 2.0))
WEIGHTLESS = Comparison("p", ("a", "b"), ((0,), (1,)), "rows, row 9", weight=0.0)


@pytest.mark.parametrize(
    ("comparisons", "loss", "message"),
    [
        ([PAIR, UNKNOWN], {"margin_coefficient": 0.1}, r"rows, row 7: loss\.margin_coefficient=0\.1 needs to know"),
        ([CONTRADICTION], {"margin_coefficient": 1}, r"rows, row 8: .* stronger by 2, .* teach the opposite"),
        ([PAIR, SOFT], {"kind": "plackett_luce"}, r"rows, row 2: win_probability=0\.75, but loss\.kind=plackett_luce"),
        ([WEIGHTLESS], {}, "every training comparison has weight 0"),
    ],
)
def test_labels_that_the_loss_would_misread_are_refused_before_training(model, comparisons, loss, message):
    with pytest.raises(ValueError, match=message):
        objective(model, comparisons, {"kind": "pairwise_logistic"} | loss)


def test_strengths_that_the_loss_does_not_read_are_not_asked_for(model):
    assert step(model, [PAIR, UNKNOWN, CONTRADICTION, WEIGHTLESS], {"kind": "pairwise_logistic"})[0]["rm/loss"] > 0


@pytest.mark.parametrize(
    "loss",
    [
        {"kind": "plackett_luce", "label_smoothing": 0.1},
        {"kind": "pairwise_logistic", "label_smoothing": 0.5},
        {"kind": "pairwise_logistic", "ties": "third"},
        {"kind": "pairwise_logistic", "margin_coefficient": -1},
    ],
)
def test_a_loss_takes_the_options_that_it_reads_and_no_others(model, loss):
    with pytest.raises(ValueError, match=r"loss\.(plackett_luce|pairwise_logistic)\."):
        objective(model, CERTAIN, loss)
