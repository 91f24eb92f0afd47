"""Templates, mixing rates and mixtures: values by hand, determinism, and mistakes by name."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.instructions.config import MixtureConfig
from rlhf.instructions.mixing import mixing_rates, whole_shares
from rlhf.instructions.mixture import group_tasks, mix, questions_of, split_clusters, told_once
from rlhf.instructions.templates import Template, read_templates, templates_of

COUNTS = {"a": 1, "b": 4, "c": 100}


def rows_of(task: str, cluster: str, count: int) -> list[dict[str, Any]]:
    return [
        {"task": task, "cluster": cluster, "prompt": f"{task}{number}?", "answer": "yes"} for number in range(count)
    ]


def templates(count: int = 2, task: str = "*") -> list[Template]:
    return read_templates(
        [{"task": task, "prompt": f"t{number} {{prompt}}", "completion": " {answer}"} for number in range(count)],
        source="t.jsonl",
    )


def config(**changes: Any) -> MixtureConfig:
    return MixtureConfig.model_validate({"templates": "t.jsonl"} | changes)


@pytest.mark.parametrize(("cap", "temperature", "weights"), [
    (1000, 1, (1, 4, 100)),
    (16, 1, (1, 4, 16)),  # capped: 1/21, 4/21, 16/21
    (16, 2, (1, 2, 4)),  # square roots: 1/7, 2/7, 4/7
    (1, 1, (1, 1, 1)),
])  # fmt: skip
def test_rates_are_capped_counts_to_the_power_of_one_over_temperature(
    cap: int, temperature: float, weights: tuple[int, ...]
) -> None:
    rates = mixing_rates(COUNTS, cap=cap, temperature=temperature)
    assert list(rates.values()) == pytest.approx([weight / sum(weights) for weight in weights])


def test_shares_are_whole_and_the_largest_remainders_are_rounded_up() -> None:
    # 10 * (1/7, 2/7, 4/7) = 1.43, 2.86, 5.71: two are missing, and b and c have the larger remainders.
    assert whole_shares({"a": 1 / 7, "b": 2 / 7, "c": 4 / 7}, 10) == {"a": 1, "b": 3, "c": 6}
    assert whole_shares({"a": 0.5, "b": 0.5}, 3) == {"a": 2, "b": 1}


@given(st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.integers(1, 500), min_size=1, max_size=8),
       st.integers(1, 1000), st.floats(1, 10), st.integers(0, 5000))  # fmt: skip
def test_shares_add_up_and_are_within_one_of_their_rate(
    counts: dict[str, int], cap: int, temperature: float, total: int
) -> None:
    rates = mixing_rates(counts, cap=cap, temperature=temperature)
    shares = whole_shares(rates, total)
    assert sum(shares.values()) == total
    assert all(abs(shares[task] - rates[task] * total) < 1 + 1e-6 for task in counts)


def test_a_template_fills_slots_and_writes_doubled_braces() -> None:
    template = Template("t", "*", "{{{prompt}}} of {n}", "{answer}")
    assert template.fill({"prompt": "What?", "n": 3, "answer": "{x}"}) == {
        "prompt": "{What?} of 3",
        "completion": "{x}",
    }


@pytest.mark.parametrize(("row", "message"), [
    ({"prompt": "Ask!", "completion": "{answer}", "task": "*"}, r"t.jsonl, row 0: prompt 'Ask!' has no slot"),
    ({"prompt": "{{prompt}}", "completion": "{answer}", "task": "*"}, r"has no slot"),
    ({"prompt": "{prompt}", "completion": "yes", "task": "*"}, r"completion 'yes' has no slot"),
    ({"prompt": "{prompt", "completion": "{answer}", "task": "*"}, r"lone brace"),
    ({"prompt": "{prompt}", "completion": "{answer}"}, r"task is None"),
])  # fmt: skip
def test_a_template_that_cannot_work_is_named(row: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_templates([row], source="t.jsonl")


def test_an_epoch_has_the_shares_and_every_row_once_before_any_comes_twice() -> None:
    tasks = group_tasks([*rows_of("a", "x", 3), *rows_of("b", "y", 40)], source="s")
    # Rates 3/13 and 10/13 of 26 examples: 6 and 20.
    mixed = mix(tasks, templates(), config(cap=10, examples=26), seed=0, on_bad_row="error")
    assert mixed.examples == {"a": 6, "b": 20}
    asked = Counter(row["prompt"].split()[1] for row in mixed.rows)
    assert [asked[f"a{number}?"] for number in range(3)] == [2, 2, 2]
    assert sorted(asked.values())[-1] == 2
    assert sum(prompt.startswith("b") for prompt in asked) == 20
    # What comes twice has the other template.
    assert max(Counter(row["prompt"] for row in mixed.rows).values()) == 1


def test_templates_are_taken_about_equally_often_and_the_seed_decides_which() -> None:
    tasks = group_tasks(rows_of("a", "x", 300), source="s")
    first, again, other = (mix(tasks, templates(10), config(), seed=seed, on_bad_row="error") for seed in (0, 0, 1))
    assert first.rows == again.rows != other.rows
    used = Counter(row["prompt"].split()[0] for row in first.rows)
    assert len(used) == 10
    assert min(used.values()) > 15


def test_a_task_takes_its_own_templates_and_those_for_all() -> None:
    found = templates_of("a", [*templates(1), *templates(2, task="a"), *templates(3, task="b")])
    assert [template.task for template in found] == ["*", "a", "a"]
    with pytest.raises(ValueError, match="none is for the task 'c'"):
        templates_of("c", templates(1, task="a"))


def test_whole_clusters_are_held_out() -> None:
    tasks = group_tasks([*rows_of("a", "x", 1), *rows_of("b", "y", 1), *rows_of("c", "x", 1)], source="s")
    training, unseen = split_clusters(tasks, config(held_out_clusters=["x"]), source="s")
    assert ([task.task for task in training], [task.task for task in unseen]) == (["b"], ["a", "c"])


@pytest.mark.parametrize(("clusters", "message"), [
    (["z"], r"s has no row of 'z'; its clusters are x, y"),
    (["x", "y"], r"all clusters of s are held out \(x, y\)"),
])  # fmt: skip
def test_an_empty_cluster_or_nothing_to_train_on_is_named(clusters: list[str], message: str) -> None:
    tasks = group_tasks([*rows_of("a", "x", 1), *rows_of("b", "y", 1)], source="s")
    with pytest.raises(ValueError, match=message):
        split_clusters(tasks, config(held_out_clusters=clusters), source="s")


@pytest.mark.parametrize(("rows", "message"), [
    ([{"task": "a", "prompt": "p"}], "row 0: task is 'a', cluster None"),
    ([*rows_of("a", "x", 1), *rows_of("a", "y", 1)], "row 1: task 'a' is in cluster 'y', before it was in 'x'"),
])  # fmt: skip
def test_rows_without_a_place_are_named(rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        group_tasks(rows, source="s")


def test_an_unknown_column_is_named_or_its_row_skipped() -> None:
    tasks = group_tasks(rows_of("a", "x", 2), source="s")
    reasons = read_templates([{"task": "*", "prompt": "{prompt}", "completion": "{reason}"}], source="t.jsonl")
    with pytest.raises(ValueError, match=r"t.jsonl, row 0 needs the column 'reason', which is None; the row has task"):
        told_once(tasks, reasons, seed=0, on_bad_row="error")
    told, skipped = told_once(tasks, reasons, seed=0, on_bad_row="skip")
    assert (told, len(skipped)) == ([], 2)
    mixed = mix(tasks, reasons, MixtureConfig(templates="templates.jsonl"), seed=0, on_bad_row="skip")
    assert (mixed.rows, set(mixed.examples.values())) == ([], {0})


def test_choices_come_from_a_list_or_from_the_prompt() -> None:
    rows = [{"task": "q", "cluster": "x", "prompt": "Which?\n- red tea\n- milk\n- red tea", "answer": "milk"}]
    (task,) = group_tasks(rows, source="s")
    by_pattern = questions_of(task, config(choices={"q": r"^- (.+)$"}), on_bad_row="error")
    by_list = questions_of(task, config(choices={"q": ["milk", "tea"]}), on_bad_row="error")
    free = questions_of(task, config(), on_bad_row="error")
    assert [list(found.rows[0].choices) for found in (by_pattern, by_list, free)] == [
        ["red tea", "milk"], ["milk", "tea"], []
    ]  # fmt: skip
    assert (by_pattern.kind, free.kind, free.name) == ("multiple_choice", "exact_match", "q")
    with pytest.raises(ValueError, match="answer is 'milk'"):
        questions_of(task, config(choices={"q": ["tea", "ale"]}), on_bad_row="error")


def test_a_pattern_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"q: '\(' is no regular expression"):
        config(choices={"q": "("})
