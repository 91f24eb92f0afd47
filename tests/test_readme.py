from tests.readme_tree import README, with_tree


def test_the_tree_of_the_readme_is_that_of_the_files() -> None:
    readme = README.read_text(encoding="utf-8")
    assert with_tree(readme) == readme, "run `make readme`"
