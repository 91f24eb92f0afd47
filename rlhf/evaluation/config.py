"""Configuration of what `rlhf eval` measures beside scores: judges that compare, best-of-n, tasks."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from policies.config import StrictModel
from reward.config import EnvironmentVariable, HttpSource

JUDGE_KEY_VARIABLE = "RLHF_JUDGE_KEY"
"""Where the key of a judge's endpoint is found unless the configuration names another variable."""
PLACEHOLDERS = ("{prompt}", "{answer_a}", "{answer_b}")


class _Judge(StrictModel):
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_.-]+$")
    """Name under which it is reported; null derives it from the model or the function."""


class EndpointJudge(_Judge):
    """A language model behind an OpenAI-compatible endpoint, shown two answers in both orders."""

    kind: Literal["endpoint"] = "endpoint"
    """Tag of this variant."""
    base_url: str
    """Address in front of `/chat/completions`, such as `http://127.0.0.1:8000/v1`; without user or key in it."""
    model: str = Field(min_length=1)
    """Model that the endpoint is asked for."""
    key_variable: EnvironmentVariable | None = JUDGE_KEY_VARIABLE
    """Environment variable that holds the key; null for an endpoint without one."""
    template: str | None = None
    """The question; null takes a built-in one. `{prompt}`, `{answer_a}` and `{answer_b}` stand for the texts. Replies
    are read as A, B or tie: the word alone, `[[A]]`, or a last line such as `Verdict: A`."""
    parameters: dict[str, str | int | float | bool | None] = {"temperature": 0, "max_tokens": 512}
    """Further fields of each request."""
    concurrent_calls: int = Field(default=8, ge=1, le=64)
    """Calls that wait for their answer at the same time."""
    timeout_seconds: float = Field(default=60.0, gt=0)
    """Longest wait for one reply."""
    retries: int = Field(default=5, ge=0, le=20)
    """Further attempts of a call that timed out, found nobody, or was answered 408, 425, 429, 500, 502, 503 or 504."""
    backoff_seconds: float = Field(default=1.0, gt=0)
    """Wait before the first further attempt; it doubles with each, up to 30, and the endpoint may ask for more."""
    deadline_seconds: float = Field(default=3600.0, gt=0)
    """Longest wait for all replies of one evaluation; a pair without both by then is dropped and counted."""

    @field_validator("template")
    @classmethod
    def _shows_everything(cls, template: str | None) -> str | None:
        missing = [] if template is None else [name for name in PLACEHOLDERS if name not in template]
        if missing:
            raise ValueError(f"lacks {' and '.join(missing)}, so the judge would not see it; put it where it belongs")
        return template

    @model_validator(mode="after")
    def _address_is_one(self) -> Self:
        try:
            self.endpoint()
        except ValidationError as error:
            message = error.errors(include_url=False, include_input=False)[0]["msg"].removeprefix("Value error, ")
            raise ValueError(re.sub(r"\b(token_variable)\b", "key_variable", f"base_url: {message}")) from None
        return self

    def endpoint(self) -> HttpSource:
        """How it is called."""
        return HttpSource(
            url=f"{self.base_url.rstrip('/')}/chat/completions",
            token_variable=self.key_variable,
            responses_per_call=1,
            concurrent_calls=self.concurrent_calls,
            timeout_seconds=self.timeout_seconds,
            retries=self.retries,
            backoff_seconds=self.backoff_seconds,
            deadline_seconds=self.deadline_seconds,
        )


class FunctionJudge(_Judge):
    """A Python function, called as `f(prompts, answers_a, answers_b, **arguments)`.

    It returns "A", "B", "tie" or None (no verdict) for each; both orders are asked.
    """

    kind: Literal["function"] = "function"
    """Tag of this variant."""
    function: str = Field(pattern=r"^[\w.]+:\w+$")
    """Import path, `package.module:function`."""
    arguments: dict[str, str | int | float | bool | None] = {}
    """Keyword arguments of the function."""


Judge = Annotated[EndpointJudge | FunctionJudge, Field(discriminator="kind")]


class BestOfNConfig(StrictModel):
    """What the baseline would reach by sampling n answers and keeping the one that the proxy scores highest."""

    n: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(1, 2, 4, 8, 16), min_length=1)
    """Answers to choose from; all are estimated from one set of samples."""
    samples: int = Field(default=16, ge=1)
    """Answers of the baseline to each prompt, at least the largest n; more narrow the estimate."""

    @model_validator(mode="after")
    def _enough_samples(self) -> Self:
        if max(self.n) > self.samples:
            raise ValueError(
                f"samples={self.samples} is below the largest n={max(self.n)}: raise samples, or take smaller n"
            )
        return self


class TasksConfig(StrictModel):
    """How the rows of `data.tasks` are asked."""

    shots: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(0,), min_length=1)
    """Solved rows of the same task in front of each question; each number is measured. Which rows, the seed decides."""
    template: str = "{question}\nAnswer:"
    """How a question is asked; the answer follows after a space. `{question}` stands for the row's question."""
    separator: str = "\n\n"
    """Between a solved row and the next."""
    max_answer_tokens: int = Field(default=32, ge=1)
    """Longest answer to an exact-match row; it also ends with its line."""
    rows: int | None = Field(default=None, ge=1)
    """How many rows of each task, from the first; null takes all."""

    @field_validator("template")
    @classmethod
    def _asks_the_question(cls, template: str) -> str:
        if "{question}" not in template:
            raise ValueError("lacks {question}, so nothing would be asked; put it where it belongs")
        return template


class HarnessConfig(StrictModel):
    """Standard tasks of lm-evaluation-harness, before and after; needs the extra `harness`."""

    tasks: tuple[str, ...] = Field(min_length=1)
    """Names of tasks, such as `hellaswag` or `arc_easy`; their data come from the hub unless they are local."""
    shots: int | None = Field(default=None, ge=0)
    """Solved rows in front of each question; null takes what each task defines."""
    rows: int | None = Field(default=None, ge=1)
    """Questions of each task, from the first; null takes all."""
    include_path: str | None = None
    """Folder with further task definitions (YAML, as the harness reads them)."""
    batch_rows: int = Field(default=8, ge=1)
    """Sequences that are scored at the same time."""
