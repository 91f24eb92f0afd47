"""Every configuration file that comes with the project is one that its stage accepts."""

from pathlib import Path

import pytest

from rlhf.configuration.loader import load_config
from rlhf.stages import STAGES, resolve

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "configs").rglob("*.yaml"))


def stage_of(path: Path) -> str:
    """configs/<stage>/<name>.yaml, configs/tiny/<stage>.yaml and configs/tiny/<stage>-<variant>.yaml."""
    if path.parent.name != "tiny":
        return path.parent.name
    return next(name for name in STAGES if path.stem == name or path.stem.startswith(f"{name}-"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_configuration_file_is_accepted_by_its_stage(path: Path) -> None:
    load_config(resolve(STAGES[stage_of(path)].config), path)
