import math

from rlhf.reports.page import Part, ReportPage, render_page
from rlhf.reports.samples import sample_sections, word_diff


def row(step: int, kind: str, response: str, **numbers: float) -> dict[str, object]:
    return {"step": step, "kind": kind, "prompt": "Who?", "response": response, **numbers}


def test_words_that_only_one_text_has_are_marked_and_nothing_is_lost() -> None:
    before, after = word_diff("mia is at  the mill.", "mia, my dear, is at  the mill.")
    assert before == [Part("mia", "removed"), Part(" is at  the mill.")]
    assert after == [Part("mia, my dear,", "added"), Part(" is at  the mill.")]
    assert word_diff("", "new") == ([], [Part("new", "added")])
    assert word_diff("same", "same") == ([Part("same")], [Part("same")])


def test_the_last_answer_is_marked_against_the_first_and_the_middle_stays_plain() -> None:
    rows = [row(step, "fixed", text) for step, text in ((0, "at the mill"), (5, "no"), (9, "at the old mill"))]
    (section,) = sample_sections(rows)
    first, middle, last = section.samples[0].answers
    assert not middle.parts
    assert [part.text for part in last.parts if part.change == "added"] == ["old "]
    assert all(part.change == "same" for part in first.parts)
    assert "<ins>old </ins>" in render_page(ReportPage("page", sections=[section]))


def test_worst_and_longest_responses_are_those_of_the_last_and_the_first_step() -> None:
    rows = [row(step, kind, f"{kind} {step}", score=-step) for step in (1, 2, 3) for kind in ("worst", "longest")]
    worst, longest = sample_sections(rows)
    assert (worst.title, longest.title) == ("Worst responses", "Longest responses")
    shown = [(answer.name, answer.text) for sample in worst.samples for answer in sample.answers]
    assert shown == [("step 3", "worst 3"), ("step 1", "worst 1")]


def test_a_kl_of_rounding_errors_reads_zero_and_versions_are_left_out() -> None:
    rows = [row(0, "fixed", "a", kl=-1.01e-6, score=-3.07812, policy_version=7, response_tokens=28)]
    (sample,) = sample_sections(rows)[0].samples
    assert sample.answers[0].scores == {"kl": 0.0, "score": -3.078, "response tokens": 28}
    assert math.copysign(1, float(str(sample.answers[0].scores["kl"]))) == 1


def test_no_rows_make_no_section() -> None:
    assert sample_sections([]) == []
