"""Encoder-decoders end to end on tiny data: span corruption, demonstrations, tasks, generation, resuming, refusals."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from policies.config import ModelConfig
from policies.encoder_decoder import EncoderDecoder, load_encoder_decoder
from policies.loading import load_backbone
from policies.tokenization import encode_completion, encode_prompt
from rlhf import cli
from rlhf.config import GenerateConfig, TextToTextConfig
from rlhf.evaluation.config import TasksConfig
from rlhf.generate import run as generate
from rlhf.runtime.json_lines import read_objects
from rlhf.runtime.run_folder import RunFiles
from rlhf.text_to_text_answers import AnsweringEncoderDecoder
from rlhf.trainers.text_to_text import run
from rlhf.trainers.text_to_text_inputs import input_ids, read_inputs
from rollout.config import SamplingConfig
from rollout.types import Prompt
from tests.interrupted_runs import interrupt_once
from tests.rlhf.trainers.test_pretrain import TEXTS, column, same_weights

CPU = torch.device("cpu")
QUESTIONS = [{"prompt": f"what did the {animal} take?", "completion": f" {thing}"}
             for animal, thing in (("cat", "ball"), ("dog", "hat"), ("owl", "map"), ("fox", "ball"))]  # fmt: skip
ANSWERED = [{"prompt": row["prompt"], "answer": row["completion"].strip()} for row in QUESTIONS]
CHOSEN = [{"question": row["prompt"], "choices": ["ball", "hat", "map"], "answer": row["answer"]} for row in ANSWERED]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def configure(tmp_path: Path, name: str = "run", **changes: Any) -> TextToTextConfig:
    settings: dict[str, Any] = {
        "run_dir": str(tmp_path / name),
        "model": {
            "architecture": {"hidden_size": 32, "layers": 1, "heads": 2, "context_tokens": 48},
            "vocabulary_size": 300,
        },
        "data": {
            "train": write(tmp_path / "train.jsonl", [{"text": text} for text in TEXTS]),
            "eval": write(tmp_path / "eval.jsonl", [{"text": text} for text in TEXTS[::9]]),
        },
        "objective": {"kind": "span_corruption"},
        "max_input_tokens": 32,
        "max_target_tokens": 16,
        "examples_per_step": 8,
        "micro_batch_examples": 8,
        "steps": 6,
        "eval_every_steps": 3,
        "optimizer": {"learning_rate": 1e-2},
        "checkpoint": {"every_steps": 2},
        "tracking": {"wandb": "off"},
    }
    return TextToTextConfig.model_validate(settings | changes)


def answering(tmp_path: Path, /, **changes: Any) -> TextToTextConfig:
    data = {
        "train": write(tmp_path / "questions.jsonl", QUESTIONS),
        "eval": str(tmp_path / "questions.jsonl"),
        "tasks": [write(tmp_path / "answered.jsonl", ANSWERED), write(tmp_path / "chosen.jsonl", CHOSEN)],
    }
    tasks = {"template": "{question}", "max_answer_tokens": 6}
    objective = {"kind": "demonstrations"}
    settings = {"objective": objective, "data": data, "tasks": tasks, "max_input_tokens": 40, "steps": 120,
                "examples_per_step": 4, "eval_every_steps": 120, "checkpoint": {"every_steps": 120}}  # fmt: skip
    return configure(tmp_path, "answers", **settings | changes)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a model that has learned four answers by heart, from a model of span corruption."""
    folder = tmp_path_factory.mktemp("text_to_text")
    config = configure(folder, "spans", steps=30)
    run(config, resume=False)
    run(answering(folder, model={"path": str(folder / "spans" / "model")}), resume=False)
    return folder / "answers"


def test_span_corruption_learns_and_leaves_a_plain_folder(tmp_path: Path) -> None:
    config = configure(tmp_path, steps=60)
    run(config, resume=False)
    losses = column(config.run_dir, "loss/train")
    assert losses[-1] < 0.6 * losses[0]
    assert RunFiles(config.run_dir).report_path.exists()
    folder = Path(config.run_dir) / "model"
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.is_encoder_decoder
    assert tokenizer.decode(tokenizer("the cat's Größe")["input_ids"], skip_special_tokens=True) == "the cat's Größe"
    assert tokenizer.convert_tokens_to_ids("<extra_id_3>") == len(tokenizer) - 32 + 3


def test_the_loss_is_that_of_transformers_on_the_targets_alone(tmp_path: Path) -> None:
    inputs = read_inputs(answering(tmp_path))
    model = inputs.model
    logprobs, mask = model.target_logprobs(
        [source for source, _ in inputs.train], [target for _, target in inputs.train]
    )
    for row, (source, target) in enumerate(inputs.train):
        labels = torch.from_numpy(target.astype("int64"))[None]
        expected = model.model(input_ids=torch.from_numpy(source.astype("int64"))[None], labels=labels).loss
        found = -logprobs[row][mask[row]].mean()
        assert found.item() == pytest.approx(expected.item(), abs=1e-5)


def test_log_probs_do_not_depend_on_what_else_is_in_the_batch(tmp_path: Path) -> None:
    model = AnsweringEncoderDecoder(read_inputs(answering(tmp_path)).model)
    prompts = [input_ids(text, model._model)[:-1] for text in ("a", "what did the dog take, and where was it?")]
    targets = [encode_completion(text, model.tokenizer) for text in (" a much longer answer", " no")]
    together = model.logprobs(prompts, targets)
    for prompt, target, values in zip(prompts, targets, together, strict=True):
        (alone,) = model.logprobs([prompt], [target])
        assert np.allclose(values, alone, atol=1e-5)


def test_demonstrations_are_learned_and_tasks_asked(tuned: Path) -> None:
    summary: dict[str, Any] = {**RunFiles(tuned).read_summary()}
    assert summary["perplexity"] < 1.2
    assert summary["tasks"] == {
        "answered, 0 shots": {"questions": 4, "exact": 1.0},
        "chosen, 0 shots": {"questions": 4, "sum": 1.0, "mean": 1.0},
    }


def test_generate_answers_with_an_encoder_decoder(tuned: Path, tmp_path: Path) -> None:
    config = GenerateConfig.model_validate({
        "run_dir": str(tmp_path / "run"), "model": {"path": str(tuned / "model")}, "responses_per_prompt": 2,
        "data": {"eval": write(tmp_path / "prompts.jsonl", ANSWERED)}, "tracking": {"wandb": "off"},
        "sampling": {"temperature": 0.01, "max_response_tokens": 8},
    })  # fmt: skip
    generate(config, resume=False)
    rows = read_objects(tmp_path / "run" / "answers.jsonl")
    assert [row["completion"] for row in rows] == [row["completion"] for row in QUESTIONS for _ in range(2)]
    assert RunFiles(tmp_path / "run").read_summary()["eos_rate"] == 1.0


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"sampling": {"min_response_tokens": 3}}, "sampling.min_response_tokens=3"),
        ({"sampling": {"stop_token_ids": [5]}}, r"sampling.stop_token_ids=\(5,\)"),
        ({"model": {"dtype": "bfloat16"}}, "model.dtype='bfloat16'"),
        ({"model": {"quantization": "int8"}}, "model.quantization='int8'"),
    ],
)
def test_what_an_encoder_decoder_would_not_follow_is_refused(
    tuned: Path, tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    settings = {
        "run_dir": str(tmp_path / "answers"),
        "model": {"path": str(tuned / "model")} | changes.pop("model", {}),
        "data": {"eval": write(tmp_path / "asked.jsonl", [{"prompt": "once"}])},
    }
    with pytest.raises(ValueError, match=f"{problem}: .* is an encoder-decoder, which does not follow it"):
        generate(GenerateConfig.model_validate(settings | changes), resume=False)
    assert not (tmp_path / "answers").exists()


def test_sampled_log_probs_are_those_of_the_model_and_stop_strings_end_an_answer(tuned: Path) -> None:
    loaded: EncoderDecoder = load_encoder_decoder(str(tuned / "model"), CPU)
    model = AnsweringEncoderDecoder(loaded)
    prompts = [Prompt(str(row), text["prompt"], encode_prompt(text["prompt"], loaded.tokenizer))
               for row, text in enumerate(QUESTIONS)]  # fmt: skip
    sampled = model.sample(prompts, SamplingConfig(max_response_tokens=6), seed=0)
    again = model.sample(prompts, SamplingConfig(max_response_tokens=6), seed=0)
    assert all(np.array_equal(one.token_ids, other.token_ids)
               for one, other in zip(sampled.completions, again.completions, strict=True))  # fmt: skip
    ids = [completion.token_ids for completion in sampled.completions]
    expected = model.logprobs([prompt.token_ids for prompt in prompts], ids)
    for completion, values in zip(sampled.completions, expected, strict=True):
        assert np.allclose(completion.logprobs, values, atol=1e-4)
    stopped = model.sample(
        prompts, SamplingConfig(temperature=0.01, max_response_tokens=6, stop_strings=("a",)), seed=0
    )
    texts = [model.tokenizer.decode(completion.token_ids) for completion in stopped.completions]
    assert all("a" in text for text in texts)
    assert {completion.finish_reason for completion in stopped.completions} == {"stop"}


def test_an_interrupted_run_resumes_to_the_bits_of_a_straight_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(configure(tmp_path, "straight"), resume=False)
    config = configure(tmp_path, "broken")
    interrupt_once(monkeypatch, at_step=6)
    with pytest.raises(KeyboardInterrupt):
        run(config, resume=False)
    run(config, resume=True)
    assert same_weights(str(tmp_path / "straight"), config.run_dir)
    for key in ("loss/train", "eval/loss", "progress/tokens"):
        assert column(config.run_dir, key) == column(str(tmp_path / "straight"), key)


def test_each_pass_has_other_spans_and_the_held_out_ones_stay(tmp_path: Path) -> None:
    config = configure(tmp_path)
    first, second = read_inputs(config), read_inputs(config)
    assert all(np.array_equal(a, b) for one, two in zip(first.held_out, second.held_out, strict=True)
               for a, b in zip(one, two, strict=True))  # fmt: skip
    run(configure(tmp_path, "micro", micro_batch_examples=3), resume=False)
    run(configure(tmp_path, "whole"), resume=False)
    assert column(str(tmp_path / "micro"), "loss/train") == pytest.approx(
        column(str(tmp_path / "whole"), "loss/train"), rel=1e-4
    )


def test_a_decoder_stage_names_the_encoder_decoder_and_the_other_way_round(
    tuned: Path, tiny_llama_folder: Path
) -> None:
    with pytest.raises(ValueError, match="holds an encoder-decoder; PPO and the other stages take decoders"):
        load_backbone(ModelConfig(path=str(tuned / "model")))
    with pytest.raises(ValueError, match="not an encoder-decoder"):
        load_encoder_decoder(str(tiny_llama_folder), CPU)


@pytest.mark.parametrize(("changes", "message"), [
    ({"max_target_tokens": 6}, "max_target_tokens of at least"),
    ({"max_input_tokens": 49}, "exceeds the model's context of 48"),
    ({"objective": {"kind": "span_corruption", "mean_span_tokens": 1.0, "noise_density": 0.9}}, "sentinels"),
    ({"objective": {"kind": "demonstrations"}}, "row 0: prompt is None"),
])  # fmt: skip
def test_what_cannot_be_learned_is_named_before_a_run_exists(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(configure(tmp_path, **changes), resume=False)
    assert not (tmp_path / "run").exists()


def test_shots_stand_in_front_of_a_question(tmp_path: Path) -> None:
    config = answering(tmp_path, steps=1, tasks=TasksConfig(shots=(1,), template="{question}"),
                       max_input_tokens=48)  # fmt: skip
    run(config, resume=False)
    summary: dict[str, Any] = {**RunFiles(config.run_dir).read_summary()}
    assert list(summary["tasks"]) == ["answered, 1 shots", "chosen, 1 shots"]


@pytest.mark.slow
def test_the_tiny_configurations_run_one_after_the_other(tmp_path: Path) -> None:
    tiny = Path(__file__).parents[3] / "configs" / "tiny"
    spans = [f"run_dir={tmp_path / 'spans'}", "steps=5", "eval_every_steps=5"]
    assert cli.main(["text-to-text", str(tiny / "text-to-text.yaml"), *spans]) == 0
    path = f"model.path={tmp_path / 'spans' / 'model'}"
    answers = [f"run_dir={tmp_path / 'answers'}", "steps=5", "eval_every_steps=5", path]
    assert cli.main(["text-to-text", str(tiny / "text-to-text-demonstrations.yaml"), *answers]) == 0
    adapter = [f"run_dir={tmp_path / 'lora'}", "steps=5", "eval_every_steps=5", path]
    assert cli.main(["text-to-text", str(tiny / "text-to-text-lora.yaml"), *adapter]) == 0
    assert RunFiles(tmp_path / "answers").read_summary()["tasks"]


# --- adapters ---------------------------------------------------------------------------------------------------------

LORA = {"kind": "lora", "rank": 4, "alpha": 8}


def with_lora(tmp_path: Path, base: Path, /, **changes: Any) -> TextToTextConfig:
    """Demonstrations learned by an adapter on the model of span corruption."""
    model = {"path": str(base), "tuning": changes.pop("tuning", LORA)}
    return answering(tmp_path, **{"model": model, "optimizer": {"learning_rate": 3e-2}, **changes})


@pytest.fixture
def spans(tuned: Path) -> Path:
    """The model that `tuned` started from."""
    return tuned.parent / "spans" / "model"


def test_an_adapter_learns_on_a_base_that_stays_and_is_saved_as_peft_saves(tmp_path: Path, spans: Path) -> None:
    before = (spans / "model.safetensors").read_bytes()
    config = with_lora(tmp_path, spans)
    run(config, resume=False)
    losses = column(config.run_dir, "loss/train")
    assert losses[-1] < 0.2 * losses[0]
    summary = RunFiles(config.run_dir).read_summary()
    assert 0 < summary["trained_parameters"] < 0.3 * summary["parameters"]  # pyright: ignore[reportOperatorIssue]

    folder = Path(config.run_dir) / "model"
    assert json.loads((folder / "adapter_config.json").read_text())["task_type"] == "SEQ_2_SEQ_LM"
    loaded = load_encoder_decoder(str(folder), CPU)
    base = AutoModelForSeq2SeqLM.from_pretrained(spans)
    weights = dict(base.named_parameters())
    assert all(torch.equal(tensor, weights[name.replace(".base_layer", "")])
               for name, tensor in loaded.model.named_parameters() if ".lora_" not in name)  # fmt: skip
    assert (spans / "model.safetensors").read_bytes() == before

    # The library alone says the same of every target, and generates the same ids.
    by_peft = PeftModel.from_pretrained(base, folder).eval()
    inputs = read_inputs(config)
    for source, target in inputs.train:
        ids, labels = (torch.from_numpy(part.astype("int64"))[None] for part in (source, target))
        with torch.no_grad():
            expected = by_peft(input_ids=ids, labels=labels).loss
        logprobs, mask = loaded.target_logprobs([source], [target])
        assert -logprobs[mask].mean().item() == pytest.approx(expected.item(), abs=1e-5)
        ((sampled, _),) = loaded.generate([source], max_tokens=8, temperature=0.01, seed=0)
        greedy = by_peft.generate(input_ids=ids, max_new_tokens=8, do_sample=False, use_cache=False)[0, 1:].numpy()
        assert np.array_equal(sampled, greedy[: len(sampled)])


@pytest.mark.parametrize("variant", ["plain", "rslora", "dora", "pissa"])
def test_a_new_adapter_changes_nothing_and_a_loaded_one_is_the_saved_one(
    tmp_path: Path, spans: Path, variant: str
) -> None:
    config = with_lora(tmp_path, spans, tuning=LORA | {"variant": variant})
    plain, inputs = load_encoder_decoder(str(spans), CPU), read_inputs(config)
    sources, targets = (list(part) for part in zip(*inputs.train, strict=True))
    with torch.no_grad():
        assert torch.allclose(
            inputs.model.target_logprobs(sources, targets)[0], plain.target_logprobs(sources, targets)[0], atol=1e-5
        )
        for _, parameter in inputs.model.trainable():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        inputs.model.save(tmp_path / "adapter", {})
        again = load_encoder_decoder(str(tmp_path / "adapter"), CPU)
        found, expected = (model.target_logprobs(sources, targets)[0] for model in (again, inputs.model))
        assert torch.equal(found, expected)
        with again.adapters.use(None):
            again.adapter = None
            assert torch.equal(*(model.target_logprobs(sources, targets)[0] for model in (again, plain)))


def test_an_interrupted_run_of_an_adapter_resumes_to_the_bits_of_a_straight_one(
    tmp_path: Path, spans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"steps": 6, "checkpoint": {"every_steps": 2}, "eval_every_steps": 3}
    straight, broken = (
        with_lora(tmp_path, spans, run_dir=str(tmp_path / name), **changes) for name in ("straight", "broken")
    )
    run(straight, resume=False)
    interrupt_once(monkeypatch, at_step=5)
    with pytest.raises(KeyboardInterrupt):
        run(broken, resume=False)
    run(broken, resume=True)
    for key in ("loss/train", "eval/loss"):
        assert column(broken.run_dir, key) == column(straight.run_dir, key)
    saved = [
        (Path(config.run_dir) / "model" / "adapter_model.safetensors").read_bytes() for config in (straight, broken)
    ]
    assert saved[0] == saved[1]


@pytest.mark.parametrize(("model", "message"), [
    ({"path": "m", "tuning": {"kind": "ia3"}}, "kind=ia3: of an encoder-decoder all weights train, or a LoRA adapter"),
    ({"path": "m", "tuning": {"kind": "prefix"}}, "kind=prefix: of an encoder-decoder"),
    ({"architecture": {"layers": 1}, "vocabulary_size": 300, "tuning": LORA}, "random weights would stay random"),
])  # fmt: skip
def test_a_tuning_that_an_encoder_decoder_does_not_have_is_named(
    tmp_path: Path, model: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        configure(tmp_path, model=model)


def test_all_weights_do_not_train_under_an_adapter(tmp_path: Path, spans: Path) -> None:
    config = with_lora(tmp_path, spans, steps=1)
    run(config, resume=False)
    full = answering(tmp_path, model={"path": str(Path(config.run_dir) / "model")}, run_dir=str(tmp_path / "full"))
    with pytest.raises(ValueError, match=r"model.path holds an adapter, and full tuning would leave it out"):
        run(full, resume=False)
