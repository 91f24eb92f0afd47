from pathlib import Path

import pytest

from rlhf.runtime.health.catalogue import explained_rules
from tests.config_reference import REFERENCE, reference
from tests.readme_health import SECTION, with_health_table
from tests.readme_tree import ARCHITECTURE, README, with_tree


@pytest.mark.parametrize("path", [README, ARCHITECTURE], ids=lambda path: path.name)
def test_the_tree_of_a_page_is_that_of_the_files(path: Path) -> None:
    page = path.read_text(encoding="utf-8")
    assert with_tree(page, modules=path == ARCHITECTURE) == page, "run `make readme`"


def test_the_symptoms_in_the_readme_are_those_of_the_health_rules() -> None:
    readme = README.read_text(encoding="utf-8")
    assert with_health_table(readme) == readme, "run `make readme`"


def test_a_table_of_other_rules_is_replaced_and_the_text_around_it_stays() -> None:
    readme = README.read_text(encoding="utf-8")
    name = explained_rules()[0].name
    assert with_health_table(readme.replace(f"| `{name}`", "| `renamed`")) == readme
    with pytest.raises(ValueError, match="not enough values"):
        with_health_table(readme.replace(SECTION, ""))


def test_the_list_of_configuration_keys_is_that_of_the_config_classes() -> None:
    assert REFERENCE.read_text(encoding="utf-8") == reference(), "run `make readme`"
