"""`rlhf generate` and `rlhf chat`: what is asked of the model, what is written, what a user can type."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policies.backbone import Backbone
from policies.loading import load_backbone
from policies.tokenization import encode_completion
from rlhf.config import ChatConfig, GenerateConfig
from rlhf.data import load_rows
from rlhf.generate import ANSWERS_FILE, ChatSession, converse, run
from rlhf.runtime.run_folder import RunFiles
from rollout.types import Completion, Prompt


def configure(tmp_path: Path, folder: Path, **changes: Any) -> GenerateConfig:
    rows = [{"id": "first", "prompt": "where is the cat?"}, {"id": "second", "prompt": "the dog"}, {"prompt": "rain"}]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings: dict[str, Any] = {
        "run_dir": str(tmp_path / "run"),
        "model": {"path": str(folder)},
        "data": {"eval": str(tmp_path / "prompts.jsonl")},
        "sampling": {"max_response_tokens": 6},
        "responses_per_prompt": 2,
        "tracking": {"wandb": "off"},
    }
    return GenerateConfig.model_validate(settings | changes)


def test_every_prompt_gets_its_responses_written_and_printed(
    tmp_path: Path, tiny_llama_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(configure(tmp_path, tiny_llama_folder), resume=False)
    files = RunFiles(tmp_path / "run")
    samples = files.read_samples()
    expected = [(name, index) for name in ("first", "second", "2") for index in (0, 1)]
    assert [(row["prompt_id"], row["response_index"]) for row in samples] == expected
    assert all(row["finish_reason"] in ("stop", "length") for row in samples)
    assert all(row["response_tokens"] in range(1, 7) for row in samples)
    assert files.read_summary()["responses"] == 6
    assert files.report_path.exists()
    printed = capsys.readouterr().out
    assert printed.count("where is the cat?") == 1
    assert "prompt second" in printed


def test_the_answers_are_data_that_other_stages_read(tmp_path: Path, tiny_llama_folder: Path) -> None:
    run(configure(tmp_path, tiny_llama_folder), resume=False)
    samples = RunFiles(tmp_path / "run").read_samples()
    rows = load_rows(str(tmp_path / "run" / ANSWERS_FILE))
    assert [(row["prompt"], row["completion"]) for row in rows] == [(row["prompt"], row["response"]) for row in samples]
    assert all(row["text"] == row["prompt"] + row["completion"] for row in rows)


def test_the_first_prompts_are_answered_as_if_all_were(tmp_path: Path, tiny_llama_folder: Path) -> None:
    run(configure(tmp_path, tiny_llama_folder), resume=False)
    everything = RunFiles(tmp_path / "run").read_samples()
    run(configure(tmp_path, tiny_llama_folder, run_dir=str(tmp_path / "two"), prompts=2), resume=False)
    assert RunFiles(tmp_path / "two").read_samples() == everything[:4]


def test_a_prompt_that_is_too_long_is_refused_before_anything_is_written(
    tmp_path: Path, tiny_llama_folder: Path
) -> None:
    with pytest.raises(ValueError, match=r"data.eval=.*prompts.jsonl, row 0: .*max_prompt_tokens=3"):
        run(configure(tmp_path, tiny_llama_folder, max_prompt_tokens=3), resume=False)
    assert not (tmp_path / "run").exists()


class ScriptedGenerator:
    """Answers with the lines of a script and remembers what it was asked."""

    def __init__(self, backbone: Backbone, script: Iterable[str]) -> None:
        self._tokenizer, self._script = backbone.tokenizer, iter(script)
        self.asked: list[tuple[str, int]] = []

    def generate(
        self, prompts: Sequence[Prompt], response_indices: Sequence[int], *, seed: int, step: int
    ) -> list[Completion]:
        (prompt,), (index,) = prompts, response_indices
        self.asked.append((prompt.text, step))
        ids = encode_completion(next(self._script), self._tokenizer)
        return [Completion(prompt.id, index, ids, np.zeros(len(ids), np.float32), "stop", seed)]


def chat_with(folder: Path, script: Iterable[str], **changes: Any) -> tuple[ChatSession, ScriptedGenerator]:
    settings = {"model": {"path": str(folder)}, "sampling": {"max_response_tokens": 8}}
    config = ChatConfig.model_validate(settings | changes)
    backbone = load_backbone(config.model)
    generator = ScriptedGenerator(backbone, script)
    return ChatSession(backbone, config, generator=generator), generator


def say(session: ChatSession, *lines: str) -> list[str]:
    waiting: Iterator[str] = iter(lines)
    answers: list[str] = []

    def read() -> str:
        for line in waiting:
            return line
        raise EOFError

    converse(session, read, answers.append)
    return answers


def test_a_conversation_carries_its_turns_and_the_system_message(tiny_llama_folder: Path) -> None:
    session, generator = chat_with(tiny_llama_folder, [" on the mat", " red"], system="be kind")
    assert say(session, "where?", "", "which?") == ["on the mat", "red"]
    assert generator.asked == [
        ("system: be kind\nuser: where?\nassistant:", 0),
        ("system: be kind\nuser: where?\nassistant: on the mat\nuser: which?\nassistant:", 1),
    ]


def test_reset_forgets_and_exit_ends(tiny_llama_folder: Path) -> None:
    session, generator = chat_with(tiny_llama_folder, [" a", " b"])
    assert say(session, "one", "/reset", "two", "/exit", "three") == ["a", "b"]
    assert generator.asked[1][0] == "user: two\nassistant:"


def test_the_oldest_turns_are_forgotten_when_the_context_is_full(tiny_llama_folder: Path) -> None:
    session, generator = chat_with(tiny_llama_folder, [" mat"] * 4)
    say(session, *["the small cat sat on the warm mat"] * 4)
    counts = [text.count("user:") for text, _ in generator.asked]
    assert counts[0] == 1
    assert max(counts) < 4
    assert all(text.startswith("user:") for text, _ in generator.asked)


def test_plain_chat_sends_the_line_alone_with_written_line_ends(tiny_llama_folder: Path) -> None:
    session, generator = chat_with(tiny_llama_folder, [" a", " b"], conversational=False)
    say(session, r"a story.\nquestion:", "next")
    assert [text for text, _ in generator.asked] == ["a story.\nquestion:", "next"]


def test_a_line_that_does_not_fit_is_explained_and_the_chat_goes_on(tiny_llama_folder: Path) -> None:
    config = ChatConfig.model_validate(
        {"model": {"path": str(tiny_llama_folder)}, "sampling": {"max_response_tokens": 8}}
    )
    session = ChatSession(load_backbone(config.model), config)
    first, second = say(session, "the rain " * 60, "hi")
    assert first.startswith("error: prompt 'turn-0' has")
    assert not second.startswith("error:")
