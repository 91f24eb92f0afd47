import math

import pytest

from rlhf.reports.frontier import run_frontier, runs_frontier
from rlhf.runtime.run_folder import Row


def steps(points: list[tuple[float, float]], coefficient: float = 0.1) -> list[Row]:
    return [
        {"step": step, "objective/kl": kl, "objective/scores": score, "objective/kl_coef": coefficient}
        for step, (kl, score) in enumerate(points, start=1)
    ]


def test_the_way_of_a_run_is_drawn_and_its_halves_are_told() -> None:
    (section,) = run_frontier(steps([(0.0, 1.0), (2.0, 2.5), (5.0, 3.0), (9.0, 2.0)]))
    (chart,) = section.charts
    assert (list(chart.series[0].x), list(chart.series[0].y)) == ([0.0, 2.0, 5.0, 9.0], [1.0, 2.5, 3.0, 2.0])
    assert chart.description == "First half of the steps: +2.00 for 5.0 nats; second half: -1.00 for 4.0 nats."


def test_a_long_run_is_averaged_to_few_points_and_steps_without_numbers_are_left_out() -> None:
    (section,) = run_frontier(steps([(float(step), 1.0) for step in range(99)] + [(math.nan, 1.0)]))
    xs = section.charts[0].series[0].x
    assert (len(xs), xs[0], xs[1]) == (33, 1.0, 4.0)


def test_a_run_without_kl_or_with_two_steps_has_no_frontier() -> None:
    assert run_frontier([{"step": 1, "loss/train": 2.0}]) == []
    assert run_frontier(steps([(0.0, 1.0), (1.0, 2.0)])) == []


def test_runs_end_at_the_mean_of_their_last_fifth_ordered_by_distance() -> None:
    far = steps([(float(step), step / 2) for step in range(10)], coefficient=0.01)
    near = steps([(1.0, 0.5)] * 4 + [(2.0, 0.75)], coefficient=0.2)
    (section,) = runs_frontier({"far": [far, far], "near": [near], "no KL": [[{"step": 1, "loss/train": 1.0}]]})
    (table,) = section.tables
    assert table.rows == [
        ["near", pytest.approx(0.2), pytest.approx(2.0), pytest.approx(0.75)],
        ["far", pytest.approx(0.01), pytest.approx(8.5), pytest.approx(4.25)],
    ]
    assert [(series.name, list(series.x)) for series in section.charts[0].series] == [
        ("far", [8.5, 8.5]),
        ("near", [2.0]),
    ]


def test_one_experiment_alone_is_no_comparison() -> None:
    assert runs_frontier({"only": [steps([(1.0, 1.0)] * 5)]}) == []
