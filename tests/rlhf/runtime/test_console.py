import io
import math

from rlhf.runtime.console import ConsoleSink
from rlhf.runtime.health.rule import Alert


def printed(*steps: dict[str, float]) -> list[str]:
    output = io.StringIO()
    sink = ConsoleSink("ppo", total_steps=100, output=output)
    for step, metrics in enumerate(steps, start=9):
        sink.log(step, metrics)
    return output.getvalue().splitlines()


def test_a_step_is_one_plain_line_when_the_output_is_not_a_terminal() -> None:
    (line,) = printed({"objective/scores": 0.5231, "objective/kl": 4.125, "time/step": 2.0, "loss/policy": 0.1})
    assert line.startswith("ppo   9/100  score   0.5231  kl    4.125  reward        -  ")
    assert line.endswith("s        2")
    assert "\x1b" not in line
    assert "0.1000" not in line


def test_columns_stay_aligned_when_steps_have_different_metrics() -> None:
    lines = printed({"objective/kl": 4.125}, {"objective/scores": -1234.5, "objective/kl": math.nan})
    assert len({line.index("kl") for line in lines}) == 1
    assert len({len(line) for line in lines}) == 1
    assert "NaN" in lines[1]


def test_an_alert_is_one_plain_line_with_what_was_found_and_what_to_do() -> None:
    output = io.StringIO()
    sink = ConsoleSink("ppo", total_steps=100, output=output)
    sink.log_alert(Alert(12, "kl_runaway", "error", "objective/kl is 31", "Too far.", "Lower `a.b` [slowly] " * 9))
    (line,) = output.getvalue().splitlines()
    assert line.startswith("ppo error at step 12 (kl_runaway): objective/kl is 31. Lower `a.b` [slowly] Lower")
