import pytest

from reward.config import PairsFormat, RankingsFormat
from reward.format_fields import read_optional, read_required
from reward.rankings.config import BattlesFormat, ScoredFormat, VotesFormat
from reward.row_fields import BadRowError

ROW = {"info": {"post": "p", "tags": ["x", "y"]}, "info.post": "column", "a": 1, "b": None, "source": None}


@pytest.mark.parametrize(
    ("path", "value"),
    [("a", 1), ("info.tags.0", "x"), ("info.tags.-1", "y"), ("info.tags", ["x", "y"]), ("info.post", "column")],
)
def test_a_path_leads_into_objects_and_lists_unless_a_column_has_its_name(path, value):
    assert read_required(ROW, PairsFormat(chosen_field=path), "chosen") == value


def test_several_paths_are_a_list():
    format = RankingsFormat(responses_field=("info.tags.1", "a"))

    assert read_required(ROW, format, "responses") == ["y", 1]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("best", "field 'best' is missing (the row has 'info', 'info.post', 'a', 'b', 'source'): add it"),
        ("b", "field 'b' is null: fill it"),
        ("info.pst", "field 'info.pst' is missing ('info' has 'post', 'tags')"),
        ("info.tags.2", "field 'info.tags.2' is missing ('info.tags' has 2 items)"),
        ("info.tags.x", "field 'info.tags.x' is missing ('info.tags' has 2 items)"),
        ("a.text", "field 'a.text' is missing ('a' has 1)"),
        ("none.text", "field 'none.text' is missing (the row has 'info', 'info.post', 'a', 'b', 'source')"),
    ],
)
def test_what_is_missing_is_named_with_its_place_and_setting(path, message):
    with pytest.raises(BadRowError) as error:
        read_required(ROW, PairsFormat(chosen_field=path), "chosen")

    assert str(error.value).startswith(message)
    assert "set data.format.chosen_field" in str(error.value)


def test_an_optional_field_may_be_absent_under_its_own_name_only():
    assert read_optional(ROW, PairsFormat(), "margin") is None
    assert read_optional(ROW, PairsFormat(), "source") is None
    assert read_optional(ROW, PairsFormat(source_field="b"), "source") is None
    assert read_optional(ROW, PairsFormat(margin_field=("a", "b")), "margin") == [1, None]
    assert read_optional({"x": None, "y": None}, PairsFormat(margin_field=("x", "y")), "margin") is None

    with pytest.raises(BadRowError, match=r"field 'subset' is missing .*: correct data\.format\.source_field"):
        read_optional(ROW, PairsFormat(source_field="subset"), "source")


@pytest.mark.parametrize("format", [PairsFormat, RankingsFormat, ScoredFormat, VotesFormat, BattlesFormat])
def test_every_field_of_a_format_has_its_conventional_name_unless_told_otherwise(format):
    for setting, field in format.model_fields.items():
        if setting.endswith("_field") and setting != "rater_field":
            assert field.default == setting.removesuffix("_field")
