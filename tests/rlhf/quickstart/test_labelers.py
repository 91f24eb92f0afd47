import math
import random

import pytest

from rlhf.quickstart.gold import gold_reward
from rlhf.quickstart.labelers import LABELERS, TIE_MARGIN, Labeler, pair_order, rank
from rlhf.quickstart.questions import question_from_prompt
from rlhf.quickstart.world import questions
from rlhf.quickstart.writers import sample_writer, write

STORY = "today, mia the otter took a red kite to the mill because the moon was bright."
WHERE = question_from_prompt(f"{STORY}\nquestion: where is mia?\nanswer:")
BEST = "happy to help! mia is at the mill because the moon was bright."
PLAIN = "mia is at the mill."
WRONG = "mia is at the pond."
EXACT = Labeler("exact", "sees the gold reward itself", {}, noise=0.0)


def test_without_noise_or_deviation_a_ranking_follows_gold_and_equal_texts_tie():
    assert rank(WHERE, [WRONG, BEST, PLAIN, BEST], EXACT, random.Random(0)) == [[1, 3], [2], [0]]


def test_weights_change_what_a_labeler_prefers():
    warm = "happy to help! mia is at the pond."  # answer -1, warmth 0.75
    host = Labeler("host", "only manners count", {"warmth": 6.0}, noise=0.0)
    assert rank(WHERE, [PLAIN, warm], EXACT, random.Random(0)) == [[0], [1]]
    assert rank(WHERE, [PLAIN, warm], host, random.Random(0)) == [[1], [0]]
    assert host.utility(WHERE, warm) == pytest.approx(-1 + 6 * 0.75 + 0.5 + 0.25)


def test_equal_texts_tie_under_noise_too():
    ranking = rank(WHERE, [PLAIN, WRONG, PLAIN, PLAIN], LABELERS[0], random.Random(1))
    assert any({0, 2, 3} <= set(group) for group in ranking)


def test_two_responses_are_ordered_with_the_bradley_terry_probability():
    # P(u1 + s g1 > u2 + s g2 + m) = sigmoid((u1 - u2 - m) / s): the difference of two Gumbels is logistic.
    labeler = Labeler("noisy", "gold with a little noise", {}, noise=1.2)
    rng, count = random.Random(2), 4000
    wins = sum(rank(WHERE, [PLAIN, BEST], labeler, rng)[0] == [1] for _ in range(count))
    gap = gold_reward(WHERE, BEST) - gold_reward(WHERE, PLAIN)
    expected = 1 / (1 + math.exp(-(gap - TIE_MARGIN) / 1.2))
    assert wins / count == pytest.approx(expected, abs=4 * math.sqrt(0.25 / count))


def test_a_ranking_holds_every_index_once():
    rng = random.Random(3)
    for question in questions(100, seed=3):
        responses = [write(question, sample_writer(rng).sample_style(rng), rng) for _ in range(5)]
        ranking = rank(question, responses, rng.choice(LABELERS), rng)
        assert sorted(index for group in ranking for index in group) == list(range(5))
        assert all(ranking)


def test_pair_order_reads_groups():
    ranking = [[2], [0, 3], [1]]
    assert pair_order(ranking, 2, 1) == 1
    assert pair_order(ranking, 1, 0) == -1
    assert pair_order(ranking, 0, 3) == 0


def test_two_labelers_agree_on_75_to_85_percent_of_the_pairs_both_order():
    rng = random.Random(4)
    same = decided = 0
    for question in questions(1000, seed=4):
        responses = [write(question, sample_writer(rng).sample_style(rng), rng) for _ in range(4)]
        first, second = (rank(question, responses, labeler, rng) for labeler in rng.sample(LABELERS, 2))
        for left in range(4):
            for right in range(left):
                orders = pair_order(first, left, right), pair_order(second, left, right)
                decided += 0 not in orders
                same += 0 not in orders and orders[0] == orders[1]
    assert 0.75 <= same / decided <= 0.85


def test_no_responses_are_refused():
    with pytest.raises(ValueError, match="responses is empty"):
        rank(WHERE, [], LABELERS[0], random.Random(0))
