"""A full disk is an error that names the file, whoever wrote it; a wrong path stays what it is."""

import errno
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from policies.checkpoint import atomic_folder, save_tensors
from policies.disk import DiskError, writing
from tests.full_disk import largest_file


def test_a_full_disk_is_named_with_the_file() -> None:
    # /dev/full is a disk without room: every write to it fails with ENOSPC.
    expected = r"^run/a\.txt could not be written \(no space left on device\); make room"
    with pytest.raises(DiskError, match=expected), writing("run/a.txt"), Path("/dev/full").open("w") as file:
        file.write("text")


def test_safetensors_refusal_is_the_same_error(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    expected = r"a\.safetensors could not be written \(file too large\)"
    with pytest.raises(DiskError, match=expected), largest_file(1000), writing(path):
        save_file({"a": torch.zeros(1000)}, path)


def error_of(number: int) -> OSError:
    return OSError(number, "refused")


@pytest.mark.parametrize("error", [error_of(errno.EACCES), error_of(errno.ENOENT), SafetensorError("bad header")])
def test_what_is_not_the_disks_doing_passes(error: Exception) -> None:
    with pytest.raises(type(error)), writing("a"):
        raise error


def write(folder: Path, text: str) -> None:
    with largest_file(1000), atomic_folder(folder) as aside:
        (aside / "a.txt").write_text(text)


def test_a_folder_that_does_not_fit_leaves_the_previous_one(tmp_path: Path) -> None:
    write(tmp_path / "model", "old")
    with pytest.raises(DiskError, match=r"model could not be written \(file too large\)"):
        write(tmp_path / "model", "new" * 1000)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "a.txt").read_text() == "old"


def test_tensors_that_do_not_fit_leave_the_previous_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"a": torch.zeros(3)})
    before = path.read_bytes()
    with pytest.raises(DiskError), largest_file(1000):
        save_tensors(path, {"a": torch.zeros(1000)})
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [(path.name, before)]
