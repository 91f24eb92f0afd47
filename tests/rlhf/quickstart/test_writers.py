import math
import random
import statistics
from collections import Counter

import pytest

from rlhf.quickstart.gold import GOLD_MAX, gold_components, gold_reward, is_correct
from rlhf.quickstart.grammar import words_of
from rlhf.quickstart.world import demonstrations, questions
from rlhf.quickstart.writers import BEST_WRITER, WRITERS, Style, all_styles, sample_writer, style_probability, write

QUESTIONS = questions(200, seed=1)
PLAIN = Style(opening="plain", fact="right", reason="none", shape="sentence", closing="none")


def test_shares_and_habits_are_probabilities():
    assert sum(writer.share for writer in WRITERS) == pytest.approx(1.0)
    for writer in (*WRITERS, BEST_WRITER):
        for habit in (writer.opening, writer.fact, writer.reason, writer.shape, writer.closing):
            assert sum(habit.values()) == pytest.approx(1.0)
            assert min(habit.values()) >= 0


def test_style_probabilities_sum_to_one_over_all_324_styles():
    styles = list(all_styles())
    assert len(styles) == 3 * 3 * 3 * 3 * 4
    assert sum(style_probability(style) for style in styles) == pytest.approx(1.0)


def test_sampled_styles_have_the_probabilities_that_are_claimed():
    rng = random.Random(2)
    count = 20_000
    seen = Counter(sample_writer(rng).sample_style(rng) for _ in range(count))
    for style, times in seen.most_common(5):
        expected = style_probability(style)
        assert times / count == pytest.approx(expected, abs=4 * math.sqrt(expected / count))


def test_every_style_earns_the_same_whatever_the_question_and_wording():
    rng = random.Random(3)
    for style in all_styles():
        components = [gold_components(question, write(question, style, rng)) for question in QUESTIONS[:4]]
        assert len({(item["answer"], item["reason"], item["warmth"], item["manners"]) for item in components}) == 1


@pytest.mark.parametrize(("fact", "answer"), [("right", 1.5), ("wrong", -1.0), ("vague", -0.5)])
def test_the_fact_written_is_the_fact_chosen(fact, answer):
    rng = random.Random(4)
    for question in QUESTIONS:
        response = write(question, Style("plain", fact, "none", "sentence", "none"), rng)
        assert gold_components(question, response)["answer"] == answer


def test_the_plain_answer_is_a_short_correct_sentence():
    rng = random.Random(5)
    for question in QUESTIONS:
        response = write(question, PLAIN, rng)
        assert is_correct(question, response)
        assert len(words_of(response)) == 5
        assert response.endswith(".")


def test_the_best_writer_always_earns_the_maximum():
    rng = random.Random(6)
    rewards = {gold_reward(question, write(question, BEST_WRITER.sample_style(rng), rng)) for question in QUESTIONS}
    assert rewards == {GOLD_MAX}


def test_writing_only_the_best_answers_costs_four_to_eight_nats():
    rng = random.Random(7)
    best = sum(
        style_probability(style)
        for style in all_styles()
        if gold_reward(QUESTIONS[0], write(QUESTIONS[0], style, rng)) == GOLD_MAX
    )
    assert 4.0 < -math.log(best) < 8.0


def test_the_mixture_leaves_headroom_and_the_best_writer_beats_it():
    rewards = [gold_reward(item.question, item.response) for item in demonstrations(2000, seed=1)]
    assert 0.5 < statistics.mean(rewards) < 2.0
    assert 1.0 < statistics.pstdev(rewards) < 2.0
    assert statistics.mean(reward < GOLD_MAX for reward in rewards) > 0.9


def test_kind_writers_earn_more_than_rude_ones_and_mistaken_ones_least():
    by_writer: dict[str, list[float]] = {}
    for item in demonstrations(3000, seed=2):
        by_writer.setdefault(item.writer.name, []).append(gold_reward(item.question, item.response))
    means = {name: statistics.mean(rewards) for name, rewards in by_writer.items()}
    assert means["kind"] > means["curt"] > means["rude"] > means["mistaken"]
