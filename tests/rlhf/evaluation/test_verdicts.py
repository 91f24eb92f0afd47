"""What is said about an evaluation: each sentence where it holds, and not elsewhere."""

from typing import Any

import pytest

from rlhf.evaluation.verdicts import peak_verdict, verdicts_on


def rate(name: str, mean: float, half: float = 0.05) -> dict[str, float]:
    return {name: mean, f"{name}_low": mean - half, f"{name}_high": mean + half}


def summary(**changes: Any) -> dict[str, Any]:
    side = {"response_length_mean": 20.0, "pretrain_ppl": 5.0}
    base = {
        **rate("win_rate", 0.7),
        **rate("length_controlled_win_rate", 0.7),
        "candidate": dict(side),
        "baseline": dict(side),
        "judges": {"gold": {"lost_pairs": 0}},
        "kl": 3.0,
        "prompts": 200,
    }
    return base | changes


def said(**changes: Any) -> list[tuple[str, str]]:
    return [(verdict.status, verdict.text) for verdict in verdicts_on(summary(**changes))]


@pytest.mark.parametrize(
    ("mean", "status", "words"),
    [(0.7, "good", "better than"), (0.3, "bad", "worse than"), (0.52, "warning", "not shown to be better or worse")],
)
def test_the_first_sentence_says_who_wins(mean, status, words):
    found, text = said(**rate("win_rate", mean), **rate("length_controlled_win_rate", mean))[0]
    assert found == status
    assert words in text
    assert "3.00 nats" in text


def test_length_is_named_where_it_changes_the_verdict_and_only_there():
    longer = {"response_length_mean": 32.5, "pretrain_ppl": 5.0}
    status, text = said(**rate("length_controlled_win_rate", 0.5), candidate=longer)[1]
    assert status == "warning"
    assert "12.5 tokens longer" in text
    assert not any("equal length" in text for _, text in said())


def test_the_best_of_n_within_the_candidates_distance_is_set_beside_it():
    rows = [
        {"n": n, "kl_bound": bound, **rate("win_rate", wins)} for n, bound, wins in ((1, 0.0, 0.5), (64, 3.17, 0.9))
    ]
    assert any(text.startswith("Best of 1 by the proxy, at most 0.00 nats") for _, text in said(best_of_n=rows))
    status, text = next(entry for entry in said(best_of_n=rows, kl=3.5) if "Best of" in entry[1])
    assert text.startswith("Best of 64")
    assert status == "warning"  # Sampling alone does better.


def test_what_was_forgotten_or_paid_is_said():
    task = {"task": "facts", "shots": 1, "measure": "sum", "difference": -0.12, "finding": "below"}
    assert ("bad", "Forgotten, beyond noise: facts (1 shots, sum) -0.120.") in said(tasks=[task])
    assert any("On no task" in text for _, text in said(tasks=[task | {"finding": "undecided"}]))
    paid = {"response_length_mean": 20.0, "pretrain_ppl": 6.0}
    assert ("warning", "Perplexity on held-out text goes from 5.000 to 6.000 (+20.0%).") in said(candidate=paid)


def test_judges_that_kept_silent_or_turn_with_the_order_are_named():
    judges = {"llm": {"lost_pairs": 3, "lost_because": ["HTTP 500"], "consistency": 0.3}}
    texts = [text for status, text in said(judges=judges) if status == "warning"]
    assert texts[0] == "llm gave no verdict on 3 pairs, which are left out: HTTP 500."
    assert texts[1].startswith("llm turns its verdict with the order of the answers on 70%")
    assert any("12 prompts are few" in text for _, text in said(prompts=12))
    assert any("7 of 200 prompts stand in the training data" in text for _, text in said(prompts_seen_in_training=7))


def test_a_peak_is_a_place_to_stop_only_where_it_is_certain():
    peak = {"gold": "g", "form": "rl", "kl": 4.0, "kl_low": 3.0, "kl_high": 5.0, "lost": 0.5, "furthest_kl": 9.0}
    certain = peak_verdict(peak | {"is_passed": True, "is_certain": True})
    assert certain.status == "bad"
    assert certain.text.startswith("Stop here: g peaks over the KL at 4.00 nats (95 % interval 3.00 to 5.00)")
    unsure = peak_verdict(peak | {"is_passed": True, "is_certain": False, "kl_high": None})
    assert unsure.status == "neutral"
    assert "to beyond the last point" in unsure.text
    assert peak_verdict(peak | {"kl": None, "is_passed": False}).text.startswith("g has no peak over the KL up to 9.00")
