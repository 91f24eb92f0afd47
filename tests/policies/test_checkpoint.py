from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from policies.adapters import AdapterSet
from policies.checkpoint import (
    atomic_folder,
    load_metadata,
    load_tensors,
    restore_interrupted,
    save_adapter,
    save_model,
    save_tensors,
)
from policies.config import LoraTuning


def write(folder: Path, text: str) -> None:
    with atomic_folder(folder) as aside:
        (aside / "a.txt").write_text(text)


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_whole(tmp_path: Path):
    with atomic_folder(tmp_path / "deep" / "model") as aside:
        (aside / "a.txt").write_text("new")
        assert not (tmp_path / "deep" / "model").exists()

    assert (tmp_path / "deep" / "model" / "a.txt").read_text() == "new"
    assert entries(tmp_path / "deep") == ["model"]


def test_a_later_write_replaces_the_folder(tmp_path: Path):
    write(tmp_path / "model", "old")
    (tmp_path / "model" / "stale.txt").write_text("left over")

    write(tmp_path / "model", "new")

    assert entries(tmp_path / "model") == ["a.txt"]
    assert (tmp_path / "model" / "a.txt").read_text() == "new"
    assert entries(tmp_path) == ["model"]


@pytest.mark.parametrize("interruption", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_the_previous_folder(tmp_path: Path, interruption: type[BaseException]):
    write(tmp_path / "model", "old")

    def interrupted() -> None:
        with atomic_folder(tmp_path / "model") as aside:
            (aside / "a.txt").write_text("half")
            raise interruption

    with pytest.raises(interruption):
        interrupted()

    assert (tmp_path / "model" / "a.txt").read_text() == "old"
    assert entries(tmp_path) == ["model"]


def test_a_rename_that_fails_leaves_the_previous_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path / "model", "old")
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if ".tmp-" in self.name:
            raise OSError("disk full")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="disk full"):
        write(tmp_path / "model", "new")

    assert (tmp_path / "model" / "a.txt").read_text() == "old"
    assert entries(tmp_path) == ["model"]


def test_a_death_between_the_two_renames_is_repaired(tmp_path: Path):
    write(tmp_path / "model", "old")
    (tmp_path / "model").rename(tmp_path / "model.previous")
    (tmp_path / "model.tmp-123").mkdir()

    restore_interrupted(tmp_path / "model")
    assert (tmp_path / "model" / "a.txt").read_text() == "old"

    write(tmp_path / "model", "new")
    assert entries(tmp_path) == ["model"]


def test_a_death_after_the_second_rename_keeps_the_new_folder(tmp_path: Path):
    write(tmp_path / "model", "new")
    write(tmp_path / "model.previous", "old")

    restore_interrupted(tmp_path / "model")

    assert (tmp_path / "model" / "a.txt").read_text() == "new"
    assert entries(tmp_path) == ["model"]


def test_a_saved_model_is_an_ordinary_folder_with_metadata(
    tiny_model: Callable[[str], PreTrainedModel], tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
):
    model = tiny_model("gpt2")
    save_model(tmp_path / "model", model, tiny_tokenizer, {"stage": "test", "seed": 3})

    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    ids = AutoTokenizer.from_pretrained(tmp_path / "model")("the cat", return_tensors="pt")["input_ids"]

    assert torch.equal(reloaded(input_ids=ids).logits, model(input_ids=ids).logits)
    assert load_metadata(tmp_path / "model") == {"stage": "test", "seed": 3}


def test_a_model_that_carries_adapters_is_not_saved_as_a_model(
    tiny_model: Callable[[str], PreTrainedModel], tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
):
    model = tiny_model("llama")
    AdapterSet(model).add("policy", LoraTuning(), seed=0)

    with pytest.raises(ValueError, match="carries adapters"):
        save_model(tmp_path / "model", model, tiny_tokenizer, {})
    assert entries(tmp_path) == []


def test_an_adapter_is_saved_with_tokenizer_and_metadata(
    tiny_model: Callable[[str], PreTrainedModel], tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
):
    adapters = AdapterSet(tiny_model("llama"))
    adapters.add("policy", LoraTuning(), seed=0)

    save_adapter(tmp_path / "adapter", adapters, "policy", tiny_tokenizer, {"stage": "test"})

    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= set(entries(tmp_path / "adapter"))
    assert load_metadata(tmp_path / "adapter").keys() == {"stage", "base_fingerprint", "base_quantization"}


def test_a_failed_save_of_an_adapter_leaves_the_previous_one(
    tiny_model: Callable[[str], PreTrainedModel], tmp_path: Path
):
    adapters = AdapterSet(tiny_model("llama"))
    adapters.add("policy", LoraTuning(), seed=0)
    adapters.save("policy", tmp_path / "adapter")
    before = (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes()

    with pytest.raises(ValueError, match="no adapter 'critic'"):
        adapters.save("critic", tmp_path / "adapter")

    assert (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes() == before
    assert entries(tmp_path) == ["adapter"]


def test_a_folder_of_another_library_has_no_metadata(tmp_path: Path):
    assert load_metadata(tmp_path) == {}


def test_tensors_come_back_equal_even_if_they_share_memory(tmp_path: Path):
    matrix = torch.arange(6.0).view(2, 3)
    tensors = {"matrix": matrix, "transposed": matrix.T, "step": torch.tensor(7), "half": torch.ones(2).bfloat16()}

    save_tensors(tmp_path / "deep" / "state.safetensors", tensors)
    loaded = load_tensors(tmp_path / "deep" / "state.safetensors")

    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    assert {name: tensor.dtype for name, tensor in loaded.items()} == {n: t.dtype for n, t in tensors.items()}


def test_a_failed_write_of_tensors_leaves_the_previous_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "state.safetensors"
    save_tensors(path, {"a": torch.ones(1)})

    def failing(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("policies.checkpoint.os.fsync", failing)
    with pytest.raises(OSError, match="disk full"):
        save_tensors(path, {"a": torch.zeros(1)})

    assert load_tensors(path)["a"].item() == 1
    assert entries(tmp_path) == ["state.safetensors"]
