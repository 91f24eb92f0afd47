"""`rlhf distill` end to end on tiny models: a student nears its teacher, a run resumes, wrong input is named."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from policies.config import ArchitectureConfig, ModelConfig
from policies.loading import random_backbone
from policies.sequences import pad_texts
from policies.tokenization import train_tokenizer
from reward.model import RewardModel
from reward.normalization import Normalizer
from rlhf.config import DistillConfig
from rlhf.config.distill import Shrink
from rlhf.distillation import loop
from rlhf.distillation.policies import PolicyLesson
from rlhf.distillation.stage import run
from rlhf.optimization import NonFiniteLossError
from rlhf.runtime.run_folder import RunFiles

TEXTS = [
    {"text": f"{who} sat on the {what} and looked at the rain"}
    for who in ("a cat", "the dog", "she")
    for what in ("mat", "hill", "tree")
]
PROMPTS = [{"prompt": f"{who} sat on"} for who in ("a cat", "the dog", "she", "a bird")]
EXCHANGES = [
    {"prompt": f"where is {who}?", "completion": f" on the {what}"}
    for who in ("he", "she", "it")
    for what in ("mat", "hill", "tree")
]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def configure(tmp_path: Path, tiny_llama_folder: Path) -> Any:
    def build(name: str = "run", *, rows: list[dict[str, Any]] = TEXTS, **changes: Any) -> DistillConfig:
        source = write_rows(tmp_path / "rows.jsonl", rows)
        settings: dict[str, Any] = {
            "run_dir": str(tmp_path / name),
            "teacher": {"path": str(tiny_llama_folder)},
            "student": {"kind": "shrunk", "cuts": [{"layers": [0], "steps": 12}]},
            "data": {"train": source, "eval": source},
            "objective": {"kind": "logits", "temperature": 2.0},
            "sequence_tokens": 24,
            "sequences_per_step": 6,
            "micro_batch_tokens": 64,
            "eval_every_steps": 5,
            "optimizer": {"learning_rate": 1e-2},
            "checkpoint": {"every_steps": 4},
            "tracking": {"wandb": "off"},
        }
        return DistillConfig.model_validate(settings | changes)

    return build


def phase(config: DistillConfig, number: int = 1) -> dict[str, Any]:
    return RunFiles(config.run_dir).read_summary()[f"phase {number}"]  # pyright: ignore[reportReturnType]


def column(config: DistillConfig, key: str) -> list[Any]:
    return [row[key] for row in RunFiles(config.run_dir).read_metrics() if key in row]


def test_a_student_without_cuts_is_its_teacher(configure: Any) -> None:
    config = configure(student={"kind": "shrunk", "cuts": [{"layers": [0, 1], "steps": 1}]})
    run(config, resume=False)
    assert phase(config)["eval/teacher_kl before"] == pytest.approx(0.0, abs=1e-6)


def test_the_divergence_is_that_of_the_libraries_logits(configure: Any, tiny_llama_folder: Path) -> None:
    lesson = PolicyLesson(configure())
    lesson.cut(Shrink(layers=(0,)))
    teacher, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tiny_llama_folder),
        AutoTokenizer.from_pretrained(tiny_llama_folder),
    )
    student: Any = lesson.student.backbone.model
    total, count = 0.0, 0
    for row in TEXTS:
        ids = torch.tensor([[*tokenizer(row["text"])["input_ids"], tokenizer.eos_token_id]])[:, :24]
        assert ids.shape[1] < 25
        with torch.no_grad():
            p, q = (model(input_ids=ids).logits[0, :-1].double().log_softmax(-1) for model in (teacher, student))
        total += float((p.exp() * (p - q)).sum())
        count += ids.shape[1] - 1
    found = lesson.evaluate()["eval/teacher_kl"]
    # Longer texts are read in pieces; these tests' texts are about as long as a sequence.
    assert found == pytest.approx(total / count, rel=0.1)


def test_the_loss_weighs_soft_targets_and_the_text_itself(configure: Any) -> None:
    found = []
    for weight in (0.0, 0.25):
        lesson = PolicyLesson(configure(objective={"kind": "logits", "temperature": 2.0, "data_weight": weight}))
        lesson.cut(Shrink(layers=(0,)))
        examples = lesson.next(3)
        found.append(lesson.loss_sum(examples).item())
    nll = lesson.student.text_nll(pad_texts([np.concatenate(row) for row in examples], pad_id=0)).sum().item()
    assert found[1] == pytest.approx(0.75 * found[0] + 0.25 * nll, rel=1e-5)
    assert lesson.units(examples) == 3 * 23


def test_recovery_after_each_cut_brings_the_student_nearer(configure: Any) -> None:
    cuts = [{"intermediate_size": 48, "steps": 12}, {"keep_every": 2, "key_value_groups": 1, "steps": 12}]
    config = configure(student={"kind": "shrunk", "cuts": cuts}, objective={"kind": "logits"})
    run(config, resume=False)
    for number in (1, 2):
        found = phase(config, number)
        assert found["eval/teacher_kl after"] < found["eval/teacher_kl before"]
    assert phase(config, 2)["parameters"] < phase(config, 1)["parameters"]
    small = AutoModelForCausalLM.from_pretrained(Path(config.run_dir) / "model")
    assert (small.config.num_hidden_layers, small.config.num_key_value_heads) == (1, 1)
    assert (small.config.num_attention_heads, small.config.intermediate_size) == (2, 48)
    assert (Path(config.run_dir) / "report.html").is_file()


def test_a_run_stopped_in_its_second_phase_resumes_to_the_same_numbers(
    configure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuts = [{"intermediate_size": 40, "steps": 2}, {"layers": [1], "steps": 4}]
    student = {"kind": "shrunk", "cuts": cuts}
    straight, broken = configure("straight", student=student), configure("broken", student=student)
    run(straight, resume=False)
    original, calls = loop.Distillation.step, []

    def stops(self: loop.Distillation) -> Any:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(loop.Distillation, "step", stops)
    with pytest.raises(KeyboardInterrupt):
        run(broken, resume=False)
    monkeypatch.setattr(loop.Distillation, "step", original)
    run(broken, resume=True)
    assert column(broken, "loss/train") == column(straight, "loss/train")
    assert phase(broken, 2) == phase(straight, 2)
    weights = [load_file(Path(config.run_dir) / "model/model.safetensors") for config in (straight, broken)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_a_student_learns_what_its_teacher_says(configure: Any, tmp_path: Path, tiny_tokenizer: Any) -> None:
    architecture = ArchitectureConfig(hidden_size=16, layers=1, heads=2, context_tokens=64)
    student = random_backbone(architecture, tiny_tokenizer, seed=4)
    student.model.save_pretrained(tmp_path / "student")
    tiny_tokenizer.save_pretrained(tmp_path / "student")
    config = configure(
        rows=PROMPTS,
        student={"kind": "model", "path": str(tmp_path / "student"), "steps": 15},
        objective={
            "kind": "sequences",
            "sampling": {"max_response_tokens": 6, "temperature": 0.5},
            "samples_per_prompt": 2,
        },
    )
    run(config, resume=False)
    assert phase(config)["eval/loss after"] < 0.8 * phase(config)["eval/loss before"]
    assert phase(config)["eval/teacher_kl after"] < phase(config)["eval/teacher_kl before"]


@pytest.fixture
def reward_folder(tmp_path: Path, tiny_llama_folder: Path) -> Path:
    model = RewardModel.new(ModelConfig(path=str(tiny_llama_folder)), seed=1)
    model.save(tmp_path / "reward", normalizer=Normalizer(0.25, 2.0, 9, "a test"), metadata={})
    return tmp_path / "reward"


def test_a_smaller_reward_model_learns_the_scores_and_keeps_the_scale(configure: Any, reward_folder: Path) -> None:
    config = configure(
        rows=EXCHANGES, teacher={"path": str(reward_folder)}, objective={"kind": "scores"}, sequence_tokens=48
    )
    run(config, resume=False)
    assert phase(config)["eval/score_error after"] < 0.5 * phase(config)["eval/score_error before"]
    student = Path(config.run_dir) / "model"
    assert Normalizer.load(student) == Normalizer.load(reward_folder)
    assert RewardModel.from_folder(str(student)).classifier.config.num_hidden_layers == 1


def test_an_uncut_reward_model_scores_as_its_teacher(configure: Any, reward_folder: Path) -> None:
    student = {"kind": "shrunk", "cuts": [{"layers": [0, 1], "steps": 1}]}
    config = configure(
        rows=EXCHANGES,
        teacher={"path": str(reward_folder)},
        objective={"kind": "scores"},
        student=student,
        sequence_tokens=48,
    )
    run(config, resume=False)
    assert phase(config)["eval/score_error before"] == pytest.approx(0.0, abs=1e-10)
    assert phase(config)["eval/score_correlation before"] == pytest.approx(1.0)


def test_a_student_with_another_tokenizer_is_refused(configure: Any, tmp_path: Path) -> None:
    other = train_tokenizer(["something else entirely"], vocabulary_size=280)
    student = random_backbone(ArchitectureConfig(hidden_size=16, layers=1, heads=2, context_tokens=64), other, seed=0)
    student.model.save_pretrained(tmp_path / "other")
    other.save_pretrained(tmp_path / "other")
    config = configure(student={"kind": "model", "path": str(tmp_path / "other")})
    with pytest.raises(ValueError, match="its tokenizer is not that of"):
        run(config, resume=False)
    assert not Path(config.run_dir).exists()


@pytest.fixture
def small_student(tmp_path: Path, tiny_tokenizer: Any) -> Any:
    def build(*, context_tokens: int = 64, vocabulary: int = 300) -> dict[str, Any]:
        architecture = ArchitectureConfig(hidden_size=16, layers=1, heads=2, context_tokens=context_tokens)
        model = random_backbone(architecture, tiny_tokenizer, seed=4).model
        model.resize_token_embeddings(vocabulary, mean_resizing=False)
        model.save_pretrained(tmp_path / "student")
        tiny_tokenizer.save_pretrained(tmp_path / "student")
        return {"kind": "model", "path": str(tmp_path / "student"), "steps": 2}

    return build


def test_after_a_bad_step_a_run_goes_on_with_the_text_of_that_step(
    configure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, broken = configure("straight"), configure("broken")
    run(straight, resume=False)
    original, calls = PolicyLesson.loss_sum, []

    def fails_once(self: PolicyLesson, examples: Any) -> Any:
        calls.append(1)
        return original(self, examples) * (float("nan") if len(calls) == 12 else 1.0)

    monkeypatch.setattr(PolicyLesson, "loss_sum", fails_once)
    with pytest.raises(NonFiniteLossError):
        run(broken, resume=False)
    run(broken, resume=True)
    assert column(broken, "loss/train") == column(straight, "loss/train")


def test_the_best_student_is_kept_beside_the_last(configure: Any) -> None:
    best = {"metric": "loss/train", "direction": "higher"}
    config = configure(checkpoint={"every_steps": 4, "keep_best": best})
    run(config, resume=False)
    losses = column(config, "loss/train")
    highest = max(range(len(losses)), key=losses.__getitem__)
    assert RunFiles(config.run_dir).read_summary()["best"] == {"step": highest + 1, "loss/train": losses[highest]}
    kept, last = (load_file(Path(config.run_dir) / name / "model.safetensors") for name in ("best", "model"))
    assert any(not torch.equal(tensor, last[name]) for name, tensor in kept.items())


def test_the_best_of_students_of_different_sizes_is_not_asked_for(configure: Any) -> None:
    cuts = [{"intermediate_size": 40}, {"layers": [1]}]
    checkpoint = {"keep_best": {"metric": "eval/loss", "direction": "lower"}}
    with pytest.raises(ValueError, match="students of different sizes are not compared"):
        configure(student={"kind": "shrunk", "cuts": cuts}, checkpoint=checkpoint)


def test_answers_beyond_the_students_context_are_refused(configure: Any, small_student: Any) -> None:
    objective = {"kind": "sequences", "sampling": {"max_response_tokens": 20, "min_response_tokens": 20}}
    config = configure(rows=PROMPTS, student=small_student(context_tokens=16), objective=objective)
    with pytest.raises(ValueError, match="the student's context 16; lower objective"):
        run(config, resume=False)
    assert not Path(config.run_dir).exists()


def test_a_student_with_an_output_layer_of_another_size_is_refused(configure: Any, small_student: Any) -> None:
    with pytest.raises(ValueError, match=r"its output layer has 320 tokens, that of .* 300"):
        run(configure(student=small_student(vocabulary=320)), resume=False)


def test_sequences_beyond_the_context_are_refused(configure: Any) -> None:
    with pytest.raises(ValueError, match="sequence_tokens=65 exceeds the context of 64"):
        run(configure(sequence_tokens=65), resume=False)


def test_a_cut_takes_one_way_of_choosing_layers(configure: Any) -> None:
    with pytest.raises(ValueError, match="give one of them"):
        configure(student={"kind": "shrunk", "cuts": [{"layers": [0], "keep_every": 2}]})


def test_a_later_cut_that_cannot_be_made_is_named_before_the_first_trains(configure: Any, reward_folder: Path) -> None:
    cuts = {"kind": "shrunk", "cuts": [{"layers": [0], "steps": 1}, {"layers": [1], "steps": 1}]}
    scores = {"teacher": {"path": str(reward_folder)}, "objective": {"kind": "scores"}, "sequence_tokens": 48}
    for config in (configure(student=cuts), configure(student=cuts, rows=EXCHANGES, **scores)):
        with pytest.raises(ValueError, match=r"student\.cuts\.1: layers=\[1\]: name different layers of 0 to 0"):
            run(config, resume=False)
        assert not Path(config.run_dir).exists()


@pytest.mark.parametrize("field", ["teacher", "student"])
@pytest.mark.parametrize("objective", ["logits", "scores"])
def test_a_model_that_is_not_there_is_named_by_its_own_field(
    configure: Any, reward_folder: Path, field: str, objective: str
) -> None:
    teacher = str(reward_folder) if objective == "scores" else configure().teacher.path
    models = {"teacher": {"path": teacher}, "student": {"kind": "model", "path": teacher}}
    models[field]["path"] = "./nowhere"
    with pytest.raises(ValueError, match=rf"^{field}\.path='\./nowhere': no such folder"):
        run(configure(objective={"kind": objective}, rows=EXCHANGES, **models), resume=False)
