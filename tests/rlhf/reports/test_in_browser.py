"""Reports in a real browser: nothing on the console, every plot drawn, nothing wider than the window."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf.cli import main
from rlhf.reports.command import COMPARISON_FILE
from rlhf.reports.page import write_report
from rlhf.reports.training import generic_training_page
from rlhf.runtime.run_folder import RunFolder
from tests.browser import LOOK, Browser, View, find_browser, running_browser

ROOT = Path(__file__).resolve().parents[3]
VIEWS = (
    View("desktop, light", 1280, 900, "light"),
    View("desktop, dark", 1280, 900, "dark"),
    View("phone, light", 360, 780, "light"),
    View("phone, dark", 360, 780, "dark"),
)
LONG_WORD = "antidisestablishmentarianism" * 8


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium on PATH; on Debian: apt-get install chromium")
    with running_browser(program) as started:
        yield started


def write_ppo_run(folder: Path, *, seed: int = 0, coefficient: float = 0.1, steps: int = 60) -> Path:
    """A run with all that a page must cope with: gaps, noise, alerts, long words, a score that is only watched."""
    watched = {"kind": "function", "name": "gold", "function": "a:b", "weight": 0.0}
    trained = {"kind": "model", "name": "proxy", "path": f"runs/{LONG_WORD}/model", "weight": 1.0}
    algorithm = {"kl": {"kind": "fixed", "coefficient": coefficient}}
    config = {"run_dir": str(folder), "seed": seed, "reward": [trained, watched], "algorithm": algorithm}
    with RunFolder.create(folder, config) as run:
        for step in range(1, steps + 1):
            kl = step / (20 * coefficient * 10) + seed / 10
            run.append_metrics(
                step,
                {
                    "objective/kl": kl,
                    "objective/scores": math.log1p(kl) + 0.1 * (-1) ** step,
                    "reward/gold": kl - 0.3 * kl**2,
                    "loss/policy": math.nan if step == 7 else math.sin(step) * 10.0 ** (step % 5 - 9),
                    "critic/explained_var": -1e6 if step == 1 else 0.5,
                    "perf/samples_per_s": 12345.678 * step,
                    "rollout/dropped": 0.0,
                },
            )
        for kind in ("fixed", "worst", "longest"):
            for step in (0, steps):
                text = f"<b>{kind}</b> at {step} {LONG_WORD}"
                row = {"kind": kind, "prompt": f"why? {LONG_WORD}", "response": text, "score": -step / 7, "kl": 1e-7}
                run.append_samples(step, [row])
        run.append_alert(
            {
                "rule": "negative_kl",
                "step": 3,
                "severity": "error",
                "finding": f"found {LONG_WORD}",
                "cause": "Because.",
                "remedy": "Lower `a.b`.",
            }
        )
        run.write_summary({"steps": steps, "score_end": 1.25, "parts": {"kl": 3.5}})
    write_report(folder, generic_training_page(folder, "PPO"))
    return folder


def look(browser: Browser, path: Path, view: View) -> dict[str, object]:
    """Loads a page and asserts what holds for every one; returns what was seen."""
    with browser.page(path, view) as page:
        seen = page.evaluate(LOOK)
        assert page.complaints() == []
        assert page.requests() == [path.resolve().as_uri()]
    assert seen["overflow"] <= 0, f"{path}, {view.name}: {seen['overflow']} px wider than the window"
    assert seen["wide"] == [], view.name
    assert seen["dead_links"] == []
    assert all((path.parent / file).exists() for file in seen["files"])
    for chart in seen["charts"]:
        assert chart["visible"], chart["label"]
        assert chart["broken"] == [], chart["label"]
        assert chart["outside"] == [], chart["label"]
        assert chart["series"] > 0 or chart["says_empty"], chart["label"]
    # Ink on paper: dark on light, or light on dark.
    assert (
        (seen["paper"] > 0.9 and seen["ink"] < 0.2)
        if view.scheme == "light"
        else (seen["paper"] < 0.15 and seen["ink"] > 0.8)
    )
    return seen


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
def test_the_page_of_a_training_run_stands_in_every_view(browser: Browser, tmp_path: Path, view: View) -> None:
    seen = look(browser, write_ppo_run(tmp_path / "run") / "report.html", view)
    assert seen["title"] == "PPO"
    assert len(list(seen["charts"])) >= 6  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("view", [VIEWS[0], VIEWS[3]], ids=lambda view: view.name)
def test_the_page_that_compares_runs_stands(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, view: View
) -> None:
    runs = [
        write_ppo_run(tmp_path / name, seed=seed, coefficient=coefficient, steps=9)
        for name, seed, coefficient in (("a0", 0, 0.1), ("a1", 1, 0.1), ("weak", 0, 0.02))
    ]
    monkeypatch.chdir(tmp_path)
    assert main(["report", *map(str, runs)]) == 0
    look(browser, tmp_path / COMPARISON_FILE, view)


def test_a_page_that_is_broken_is_found_out(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "broken.html"
    wide = '<main><div style="width: 3000px">x</div><svg viewBox="0 0 9 9"><circle cx="NaN"/></svg></main>'
    page.write_text(f'<body style="background: white; color: black">{wide}<img src="gone.png">', encoding="utf-8")
    with browser.page(page, VIEWS[0]) as shown:
        seen = shown.evaluate(LOOK)
        assert shown.complaints()
        assert len(shown.requests()) == 2
    assert seen["overflow"] > 1000
    assert seen["charts"][0]["broken"] == ["NaN"]


ROAD = (
    ("pretrain", "steps=20", "eval_every_steps=10"),
    ("sft", "data.train=quickstart/demonstrations[:64]"),
    ("reward", "data.train=quickstart/rankings[:64]", "eval_every_steps=2"),
    ("dpo", "data.train=quickstart/rankings[:32]", "eval_every_steps=1"),
    ("ppo", "steps=4", "sample_every_steps=2", "placement.kind=in_process", "rollout.prompts_per_step=8"),
    ("eval", "prompts=20"),
    ("rankings",),
    ("generate", "prompts=10"),
)
"""Every stage that ends in a page, made short."""
WORLD = ("stories=200", "demonstrations=100", "pretrain_steps=10", "ppo_steps=2", "comparisons=50", "eval_prompts=20")


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_the_page_of_every_stage_stands_in_every_view(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for stage, *changes in ROAD:
        config = ROOT / "configs" / "tiny" / f"{stage}.yaml"
        untracked = () if stage == "rankings" else ("tracking.wandb=off",)
        assert main([stage, str(config), *changes, *untracked]) == 0, stage
    assert main(["quickstart", "run_dir=runs/tiny/quickstart", *WORLD, "tracking.wandb=off"]) == 0
    pages = sorted(Path("runs/tiny").glob("**/report.html"))
    assert len(pages) == len(ROAD) + 1 + 5  # The quickstart's stages have pages of their own.
    for path in pages:
        for view in VIEWS:
            look(browser, path.resolve(), view)
