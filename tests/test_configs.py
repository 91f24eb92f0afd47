"""Every configuration file that comes with the project is one that its stage accepts.

Those of W&B sweeps are `tests/rlhf/dashboard/test_sweeps.py`'s.
"""

from pathlib import Path

import pytest

from rlhf.config_loading.loader import load_config
from rlhf.stages import STAGES, resolve

ROOT = Path(__file__).parents[1]
FILES = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name != "sweeps")


def stage_of(path: Path) -> str:
    """configs/<stage>/<name>.yaml, configs/tiny/<stage>[-<variant>].yaml, and configs/tuning/<method>.yaml for sft."""
    if path.parent.name == "tuning":
        return "sft"
    if path.parent.name != "tiny":
        return path.parent.name
    return next(name for name in STAGES if path.stem == name or path.stem.startswith(f"{name}-"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_configuration_file_is_accepted_by_its_stage(path: Path) -> None:
    load_config(resolve(STAGES[stage_of(path)].config), path)
