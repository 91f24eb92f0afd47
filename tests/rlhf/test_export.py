"""`rlhf export`: the written folder computes what base and adapter did, or there is no folder."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from policies.checkpoint import load_metadata
from policies.config import LoraTuning, ModelConfig
from policies.loading import load_backbone
from rlhf.config import ExportConfig
from rlhf.export import ExportMismatchError, run
from tests.tiny_models import randomize


@pytest.fixture
def adapter_folder(tmp_path: Path, tiny_llama_folder: Path, tiny_tokenizer: PreTrainedTokenizerBase) -> Path:
    backbone = load_backbone(ModelConfig(path=str(tiny_llama_folder)))
    backbone.adapters.add("policy", LoraTuning(rank=3, alpha=6), seed=0)
    randomize(backbone.adapters, "policy", seed=5)
    backbone.adapters.save("policy", tmp_path / "adapter", tokenizer=tiny_tokenizer)
    return tmp_path / "adapter"


def config(source: Path, target: Path, **changes: float) -> ExportConfig:
    return ExportConfig.model_validate({"model": {"path": str(source)}, "run_dir": str(target)} | changes)


def logits(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    with torch.no_grad():
        return model(**tokenizer("the cat sat on the hill", return_tensors="pt")).logits


def test_the_exported_folder_equals_base_and_adapter_as_peft_computes_them(
    tmp_path: Path, adapter_folder: Path, tiny_llama_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "exported"
    run(config(adapter_folder, target), resume=False)
    base = AutoModelForCausalLM.from_pretrained(tiny_llama_folder)
    tokenizer = AutoTokenizer.from_pretrained(target)
    before = logits(base, tokenizer)
    expected = logits(PeftModel.from_pretrained(base, str(adapter_folder)), tokenizer)
    exported = logits(AutoModelForCausalLM.from_pretrained(target), tokenizer)
    torch.testing.assert_close(exported, expected, rtol=0, atol=1e-4)
    assert (exported - before).abs().max() > 0.1
    assert "largest difference of a logit" in capsys.readouterr().out


def test_the_exported_folder_needs_no_peft_and_says_where_it_came_from(tmp_path: Path, adapter_folder: Path) -> None:
    run(config(adapter_folder, tmp_path / "exported"), resume=False)
    assert not list((tmp_path / "exported").glob("adapter*"))
    assert load_metadata(tmp_path / "exported")["stage"] == "export"


def test_a_model_without_adapter_is_exported_as_it_is(tmp_path: Path, tiny_llama_folder: Path) -> None:
    run(config(tiny_llama_folder, tmp_path / "exported"), resume=False)
    source, exported = (
        AutoModelForCausalLM.from_pretrained(folder).state_dict()
        for folder in (tiny_llama_folder, tmp_path / "exported")
    )
    assert all(torch.equal(source[name], exported[name]) for name in source | exported)


def test_nothing_is_written_where_a_logit_differs_by_more_than_the_tolerance(
    tmp_path: Path, adapter_folder: Path
) -> None:
    with pytest.raises(ExportMismatchError, match=r"more than tolerance=1e-12; nothing was written"):
        run(config(adapter_folder, tmp_path / "exported", tolerance=1e-12), resume=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path, adapter_folder: Path) -> None:
    target = tmp_path / "exported"
    target.mkdir()
    (target / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"exists and is not an empty folder"):
        run(config(adapter_folder, target), resume=False)
    assert [path.name for path in target.iterdir()] == ["notes.txt"]
