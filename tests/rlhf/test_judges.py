import gzip
import json

import pytest

from rlhf.judges import naive_bayes


@pytest.fixture
def labelled_file(tmp_path):
    rows = [{"text": "good", "label": 1}, {"text": "bad", "label": 0}] * 2
    rows += [{"text": "bad", "label": 1}, {"text": "good", "label": 0}] * 2
    path = tmp_path / "rows.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return str(path)


@pytest.mark.parametrize(("part", "sign"), [("[:50%]", 1), ("[:4]", 1), ("[50%:]", -1)])
def test_the_judge_learns_from_the_part_of_the_file_it_is_given(labelled_file, part, sign):
    good, bad = naive_bayes(["", ""], ["so good", "so bad"], data=labelled_file + part)

    assert sign * good > 0 > sign * bad


@pytest.mark.parametrize(("part", "message"), [("x", "arguments.data"), ("[:1]", "one label"), ("[8:]", "no rows")])
def test_a_judge_that_cannot_be_trained_is_refused(labelled_file, part, message):
    with pytest.raises(ValueError, match=message):
        naive_bayes([""], ["x"], data=labelled_file + part)
