"""Data sources: files, embedded sets, slices, and what a user is told when one cannot be read."""

import gzip
import json
from pathlib import Path

import pandas
import pytest

from rlhf.data import load_rows

ROWS = [{"prompt": f"p{index}", "completion": f" c{index}"} for index in range(10)]


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_json_lines_are_read_in_order(jsonl: Path) -> None:
    assert load_rows(str(jsonl)) == ROWS


def test_gzipped_json_lines_give_the_same_rows(tmp_path: Path, jsonl: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(jsonl.read_bytes()))
    assert load_rows(str(path)) == ROWS


def test_a_byte_order_mark_and_windows_line_ends_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes("\r\n".join(json.dumps(row) for row in ROWS).encode("utf-8-sig"))
    assert load_rows(str(path)) == ROWS


def test_a_json_list_gives_the_same_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS, indent=2))
    assert load_rows(str(path)) == ROWS


def test_parquet_gives_the_same_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pandas.DataFrame(ROWS).to_parquet(path)
    assert load_rows(str(path)) == ROWS


def test_csv_keeps_texts_that_pandas_would_take_for_missing_values(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\nNA,1\nnull,0\n")
    assert load_rows(str(path)) == [{"text": "NA", "label": 1}, {"text": "null", "label": 0}]


def test_json_values_come_back_as_written_without_guessed_types_or_added_fields(tmp_path: Path) -> None:
    rows = [{"text": "2026-01-01"}, {"text": "line\u2028separator", "extra": None}]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    assert load_rows(str(path)) == rows


@pytest.mark.parametrize(
    ("suffix", "expected"),
    [
        ("[:3]", ROWS[:3]),
        ("[7:]", ROWS[7:]),
        ("[2:4]", ROWS[2:4]),
        ("[-2:]", ROWS[-2:]),
        ("[:50%]", ROWS[:5]),
        ("[50%:]", ROWS[5:]),
        ("[25%:75%]", ROWS[2:7]),
        ("[:]", ROWS),
        ("[:99]", ROWS),
    ],
)
def test_a_slice_selects_rows_or_percent(jsonl: Path, suffix: str, expected: list[dict[str, str]]) -> None:
    assert load_rows(f"{jsonl}{suffix}") == expected


def test_complementary_percentages_share_no_row_and_lose_none(jsonl: Path) -> None:
    assert load_rows(f"{jsonl}[:33%]") + load_rows(f"{jsonl}[33%:]") == ROWS


def test_an_embedded_set_has_its_documented_size_and_takes_slices() -> None:
    assert len(load_rows("quickstart/prompts")) == 1000
    assert load_rows("quickstart/prompts[990:]") == load_rows("quickstart/prompts")[990:]


def test_an_unknown_embedded_set_names_those_that_exist() -> None:
    with pytest.raises(ValueError, match="quickstart/storys is not an embedded data set; there are quickstart/stories"):
        load_rows("quickstart/storys")


def test_a_missing_file_names_field_value_and_what_is_allowed(tmp_path: Path) -> None:
    missing = tmp_path / "absent.jsonl"
    with pytest.raises(ValueError, match=r"data.eval=.*absent.jsonl: no such file; allowed are .*optional") as error:
        load_rows(str(missing), field="data.eval")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ('{"a": 1}\n{"a": \n', "line 2 is not valid JSON: .*; one object a line is allowed, or in .json one list"),
        ('{"a": 1}\n[1, 2]\n', "line 2 is a list; only objects"),
        ("", "no rows"),
        ("\n\n", "no rows"),
    ],
)
def test_a_broken_or_empty_file_is_refused_with_the_place(tmp_path: Path, content: str, complaint: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=complaint):
        load_rows(str(path))


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.parquet", "rows.json"])
def test_a_damaged_file_is_refused_in_one_line_that_names_it(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"\xff\xfe not what the name says")
    with pytest.raises(ValueError, match=f"{name}: cannot be read as") as error:
        load_rows(str(path))
    assert "\n" not in str(error.value)


def test_a_truncated_gzip_file_is_refused(tmp_path: Path, jsonl: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(jsonl.read_bytes())[:-9])
    with pytest.raises(ValueError, match="cannot be read as jsonl"):
        load_rows(str(path))


def test_a_slice_without_rows_is_refused_and_tells_how_many_there_are(jsonl: Path) -> None:
    with pytest.raises(ValueError, match=r"no rows .* holds 10"):
        load_rows(f"{jsonl}[10:]")


def test_a_folder_or_bare_word_is_no_source(tmp_path: Path) -> None:
    for source in (str(tmp_path), "stories"):
        with pytest.raises(ValueError, match="not a data source; allowed are"):
            load_rows(source)


def test_a_hub_name_carries_config_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None, str]] = []

    def record(name: str, config: str | None, *, split: str) -> list[dict[str, str]]:
        asked.append((name, config, split))
        return [{"text": "a"}, {"text": "b"}]

    monkeypatch.setattr("rlhf.data.load_dataset", record)
    assert load_rows("owner/name[:1]") == [{"text": "a"}]
    load_rows("owner/name:test")
    load_rows("owner/name:main:test")
    assert asked == [("owner/name", None, "train"), ("owner/name", None, "test"), ("owner/name", "main", "test")]


def test_an_unreachable_hub_name_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach\n'owner/name'")

    monkeypatch.setattr("rlhf.data.load_dataset", unreachable)
    with pytest.raises(ValueError, match=r"data.train=owner/name: neither a local file nor") as error:
        load_rows("owner/name")
    assert "\n" not in str(error.value)
