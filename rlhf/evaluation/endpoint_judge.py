"""A language model as judge, behind any endpoint that speaks OpenAI's chat completions.

Owns the question, the reading of replies, and their store: one JSON line a reply in the run folder, by a hash of
address and request, so that an evaluation that stopped pays for no reply twice. Attempts are `reward.http_client`.
"""

import hashlib
import json
import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from reward.http_client import CallFailedError, Deadline, EndpointClient
from reward.http_protocol import read_token
from reward.http_source import EndpointError
from rlhf.evaluation.comparing import Choice, Verdicts
from rlhf.evaluation.config import EndpointJudge
from rlhf.runtime import json_lines

DEFAULT_TEMPLATE = """Two assistants answered the same prompt. Decide which answer is better: more helpful, more true.
Neither the length of the answers nor their order counts.

[Prompt]
{prompt}

[Answer A]
{answer_a}

[Answer B]
{answer_b}

Reply with one word: A, B or tie."""
"""The question of a judge whose configuration has none."""
REPLIES_FILE = "judge-replies.jsonl"
_WORDS: dict[str, Choice] = {"a": "A", "b": "B", "tie": "tie", "c": "tie"}
_THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL)
_BRACKETED = re.compile(r"\[\[(A|B|C|tie)\]\]", re.IGNORECASE)
_LAST_LINE = re.compile(
    r"\W*(?:(?:.*\b(?:verdict|answer|winner|choice|better|decision)\b(?:\s+is)?\s*[:=]?)\W*)?(?:answer\s+)?"
    r"(A|B|tie)\W*",
    re.IGNORECASE,
)
_SHOWN_LETTERS = 80


class _Message(BaseModel):
    content: str


class _Choice(BaseModel):
    message: _Message


class _Completion(BaseModel):
    """What is read of an answer; the rest may be anything."""

    choices: list[_Choice] = Field(min_length=1)


class ReplyStore:
    """Replies by the hash of what was asked, in memory and in one file that only grows; safe for threads.

    Args:
        path: The file; made with its folder when the first reply is kept.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self._replies = {str(row["key"]): str(row["reply"]) for row in json_lines.read_objects(path)}

    def find(self, key: str) -> str | None:
        """The reply to what was asked before."""
        return self._replies.get(key)

    def keep(self, key: str, reply: str) -> None:
        """Adds a reply; it outlives this process however it ends."""
        with self._lock:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            json_lines.append_line(self._path, json_lines.encode({"key": key, "reply": reply}))
            self._replies[key] = reply


class EndpointVerdicts:
    """The judge of one endpoint; see `ComparingJudge`.

    Args:
        config: Where it is and how it is asked.
        store: Replies of earlier calls.

    Raises:
        ValueError: the key's environment variable is not set, or holds no key.
    """

    def __init__(self, config: EndpointJudge, store: ReplyStore) -> None:
        self._config, self._store, self._endpoint = config, store, config.endpoint()
        self._template = DEFAULT_TEMPLATE if config.template is None else config.template
        self._key = _key_of(config)
        self._client = EndpointClient(self._endpoint, token=self._key)

    def __call__(self, prompts: Sequence[str], answers_a: Sequence[str], answers_b: Sequence[str]) -> Verdicts:
        """Verdicts in order; a call that failed, or a reply that says neither A, B nor tie, is none."""
        deadline = Deadline(self._config.deadline_seconds)
        workers = ThreadPoolExecutor(self._config.concurrent_calls, thread_name_prefix="judge-call")
        try:
            pairs = zip(prompts, answers_a, answers_b, strict=True)
            found = list(workers.map(lambda pair: self._verdict(*pair, deadline=deadline), pairs))
        finally:
            # After an interrupt nobody waits for what is left.
            deadline.cancel()
            workers.shutdown(wait=False, cancel_futures=True)
        return Verdicts(
            [choice for choice, _ in found], {index: why for index, (_, why) in enumerate(found) if why is not None}
        )

    def require_reachable(self) -> None:
        """Asks for one verdict, so that a wrong address or key is known before the models answer.

        Raises:
            EndpointError: there is no reply; the message says what to do.
        """
        try:
            self._reply(_question(self._template, "Say hello.", "Hello!", "Hello."), self._deadline())
        except CallFailedError as error:
            raise EndpointError(
                f"judges.base_url={self._config.base_url!r}: {error}; {_remedy(self._config, error)}"
            ) from error

    def _deadline(self) -> Deadline:
        return Deadline(self._config.deadline_seconds)

    def _verdict(
        self, prompt: str, answer_a: str, answer_b: str, *, deadline: Deadline
    ) -> tuple[Choice | None, str | None]:
        try:
            reply = self._reply(_question(self._template, prompt, answer_a, answer_b), deadline)
        except CallFailedError as error:
            return None, str(error)
        choice = read_choice(reply)
        return choice, None if choice else f"the reply names no winner: {self._shown(reply)}"

    def _reply(self, question: str, deadline: Deadline) -> str:
        """The text of the answer, from the store where it was asked before.

        Raises:
            CallFailedError: there is none.
        """
        request: dict[str, Any] = {"model": self._config.model, "messages": [{"role": "user", "content": question}]}
        body = json.dumps(self._config.parameters | request, sort_keys=True).encode()
        key = hashlib.sha256(self._endpoint.url.encode() + b"\n" + body).hexdigest()
        reply = self._store.find(key)
        if reply is None:
            reply = _content(self._client.post(body, deadline))
            self._store.keep(key, reply)
        return reply

    def _shown(self, text: str) -> str:
        text = " ".join(text.split())
        if self._key is not None:
            text = text.replace(self._key, "[key]")
        return repr(text if len(text) <= _SHOWN_LETTERS else f"{text[:_SHOWN_LETTERS]}...")


def read_choice(reply: str) -> Choice | None:
    """A, B or tie, where a reply says so: the word alone, the last `[[A]]`, or a last line that ends with it."""
    text = _THOUGHTS.sub("", reply).strip()
    bracketed = _BRACKETED.findall(text)
    if bracketed:
        return _WORDS[bracketed[-1].lower()]
    match = _LAST_LINE.fullmatch(text.rpartition("\n")[2].strip())
    return _WORDS[match[1].lower()] if match else None


def _question(template: str, prompt: str, answer_a: str, answer_b: str) -> str:
    """The template with its texts, put in at once: a text may hold what looks like a placeholder."""
    texts = {"{prompt}": prompt, "{answer_a}": answer_a, "{answer_b}": answer_b}
    return re.sub(r"\{(?:prompt|answer_a|answer_b)\}", lambda match: texts[match[0]], template)


def _content(body: bytes) -> str:
    try:
        return _Completion.model_validate_json(body).choices[0].message.content
    except ValidationError as error:
        raise CallFailedError("answered no chat completion", status=200) from error


def _key_of(config: EndpointJudge) -> str | None:
    if config.key_variable is None:
        return None
    key = read_token(config.key_variable)
    if key is None:
        raise ValueError(
            f"judges.key_variable={config.key_variable}: that environment variable is not set; export the key of "
            f"{config.base_url} in it, or set key_variable=null for an endpoint without one"
        )
    return key


def _remedy(config: EndpointJudge, error: CallFailedError) -> str:
    if error.status in (401, 403):
        return f"set {config.key_variable or 'key_variable, and the variable that it names,'} to a key that it accepts"
    if error.status in (400, 404, 405, 422):
        return "correct judges.base_url (what stands in front of /chat/completions), judges.model or judges.parameters"
    if error.status == 200:
        return "it must speak OpenAI's chat completions"
    return "start it, or correct judges.base_url"
