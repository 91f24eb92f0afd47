"""Configuration of rewards: the sources of scores in a run, and how a reward model is trained."""

import re
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from policies.config import StrictModel
from reward.dialogues import TurnMarks
from reward.format_fields import FieldPath, FieldPaths

EnvironmentVariable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
"""Name of an environment variable; secrets are read from there and stand in no configuration."""
TOKEN_VARIABLE = "RLHF_REWARD_TOKEN"
"""Where client and server of scores find their token unless they are told otherwise."""
TagName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]
"""Name of a section of a response: `answer` for `<answer>...</answer>`."""


_SECRET_PARAMETER = re.compile(r"(?:^|&)[^=&]*(?:token|key|secret|password|signature)[^=&]*=", re.IGNORECASE)


class _Source(StrictModel):
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_.-]+$")
    """Name under which the component is logged; null derives it from the source."""
    weight: float = 1.0
    """Factor of this source in the sum; 0 only watches."""


class LearnedModelConfig(StrictModel):
    """A trained reward model, and how it reads."""

    path: str
    """Folder written by `rlhf reward`, or any AutoModelForSequenceClassification with one label: folder or hub name."""
    reads: Literal["prompt_and_response", "response"] = "prompt_and_response"
    """What the model is shown; `response` for models of text quality that were trained without prompts."""
    eos_token: str | None = None
    """Closes what the model reads, where its tokenizer names no end of sequence; null keeps the tokenizer's own."""
    pad_token: str | None = None
    """Padding token, where its tokenizer names none; null keeps the tokenizer's own."""
    max_tokens: int = Field(default=512, ge=2)
    """Longest input in tokens, at most the model's context; a longer one loses its beginning."""
    micro_batch_tokens: int = Field(default=8192, ge=1)
    """Padded tokens of one forward pass."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the backbone's weights; the score itself is computed in float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device; `auto` takes the GPU that the process sees, else the CPU."""


class ModelSource(_Source, LearnedModelConfig):
    """A learned reward model."""

    kind: Literal["model"] = "model"
    """Tag of this variant."""
    normalization: Literal["stored", "logits", "none"] = "stored"
    """`stored` applies the scale that `rlhf reward` or `rlhf normalize-reward` saved with the model: mean 0, spread 1.

    `logits` divides by the temperature of `calibrate=temperature` in place of the spread, so that the sigmoid of a
    difference is a probability; its spread differs from model to model, and with it the right KL coefficient. `none`
    takes raw scores.
    """


class EnsembleSource(_Source):
    """Several learned reward models: the mean of their scores, less a penalty where they disagree.

    The disagreement, the standard deviation over the members, is logged as `<name>/disagreement`.
    """

    kind: Literal["ensemble"] = "ensemble"
    """Tag of this variant."""
    members: tuple[LearnedModelConfig, ...] = Field(min_length=2)
    """The models, such as those of `rlhf reward` with `ensemble_members`."""
    disagreement_penalty: float = Field(default=0.0, ge=0)
    """Units of score taken away for each unit of disagreement (after Coste et al. 2023, who take the variance)."""
    normalization: Literal["stored", "logits"] = "stored"
    """Scale of each member before they are compared; as for a single model."""


class FunctionSource(_Source):
    """A Python function `module:function`, called as `f(prompts, responses, **arguments) -> list of floats`."""

    kind: Literal["function"] = "function"
    """Tag of this variant."""
    function: str = Field(pattern=r"^[\w.]+:\w+$")
    """Import path, `package.module:function`."""
    arguments: dict[str, str | int | float | bool | None] = {}
    """Keyword arguments of the function."""


class RegexRule(_Source):
    """1.0 where the response matches, else 0.0."""

    kind: Literal["regex"] = "regex"
    """Tag of this variant."""
    pattern: str
    """Regular expression searched in the response."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}; correct or escape it") from error
        return pattern


class LengthRule(_Source):
    """0 inside [minimum_words, maximum_words], minus one for each word outside."""

    kind: Literal["length"] = "length"
    """Tag of this variant."""
    minimum_words: int = Field(default=0, ge=0)
    """Fewest words without penalty."""
    maximum_words: int = Field(default=1_000_000, ge=1)
    """Most words without penalty."""

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Self:
        if self.minimum_words > self.maximum_words:
            raise ValueError(
                f"minimum_words={self.minimum_words} exceeds maximum_words={self.maximum_words}, so no response could "
                "fit; swap or correct them"
            )
        return self


class LengthPenaltyRule(_Source):
    """0 up to `free_tokens`, then down in a straight line to -1 at `maximum_tokens`, and -1 beyond.

    The soft overlong punishment of Yu et al. 2025 (DAPO, equation 13). `weight` is its size in units of the reward.
    """

    kind: Literal["length_penalty"] = "length_penalty"
    """Tag of this variant."""
    free_tokens: int = Field(ge=0)
    """Longest response without penalty, in the policy's tokens, end of sequence included."""
    maximum_tokens: int = Field(ge=1)
    """Response length of the whole penalty; often `rollout.sampling.max_response_tokens`."""

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Self:
        if self.free_tokens >= self.maximum_tokens:
            raise ValueError(
                f"free_tokens={self.free_tokens} must be below maximum_tokens={self.maximum_tokens}; lower it, or use "
                "a length rule for a hard bound"
            )
        return self


class FormatRule(_Source):
    """1.0 where the response is these tagged sections, each once, in this order and not empty, else 0.0.

    `sections: [think, answer]` asks for `<think>...</think> <answer>...</answer>`, with nothing but white space around.
    """

    kind: Literal["format"] = "format"
    """Tag of this variant."""
    sections: tuple[TagName, ...] = Field(min_length=1)
    """Names of the sections."""

    @field_validator("sections")
    @classmethod
    def _each_once(cls, sections: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(sections)) < len(sections):
            raise ValueError(f"sections={list(sections)} names one twice; each stands in a response once: remove it")
        return sections


class _AnswerRule(_Source):
    field: str = "answer"
    """Column of the data row that holds the right answer."""
    section: TagName | None = None
    """Reads the last `<section>...</section>` of the response alone, and scores 0.0 where there is none; null reads the
    whole response."""


class ExactAnswerRule(_AnswerRule):
    """1.0 where the response ends with the row's answer as a word of its own, else 0.0.

    Case, white space around and a final full stop, question or exclamation mark do not count.
    """

    kind: Literal["exact_answer"] = "exact_answer"
    """Tag of this variant."""


class NumericAnswerRule(_AnswerRule):
    """1.0 where the last number of the response equals that of the row's answer within the tolerance, else 0.0.

    How numbers are written is decided in `reward.answers`: 1,234.5, 2.5e-3, 3/4, 1 1/2, $5 and 12% are numbers.
    """

    kind: Literal["numeric_answer"] = "numeric_answer"
    """Tag of this variant."""
    absolute_tolerance: float = Field(default=0.0, ge=0)
    """Largest distance from the right answer; the larger of both tolerances counts."""
    relative_tolerance: float = Field(default=0.0, ge=0)
    """Largest distance as a share of the right answer's size."""
    percent: Literal["ignored", "hundredths"] = "ignored"
    """Whether 12% is read as 12 or as 0.12, in the response and in the row."""


class HttpSource(_Source):
    """An endpoint that scores over HTTP, such as `rlhf serve-reward`; its protocol is `reward.http_protocol`."""

    kind: Literal["http"] = "http"
    """Tag of this variant."""
    url: str
    """Where calls are sent, `http://host:port/score`; without user, password or token in it."""
    token_variable: EnvironmentVariable | None = TOKEN_VARIABLE
    """Environment variable that holds the token, wherever the reward role runs; null for an endpoint without one."""
    row_fields: tuple[str, ...] = ()
    """Columns of the data row that are sent along, for rules over there; a column that a row lacks is left out."""
    responses_per_call: int = Field(default=32, ge=1)
    """Responses of one call."""
    concurrent_calls: int = Field(default=4, ge=1, le=64)
    """Calls that wait for their answer at the same time."""
    timeout_seconds: float = Field(default=60.0, gt=0)
    """Longest wait for the answer to one call."""
    retries: int = Field(default=3, ge=0, le=20)
    """Further attempts of a call that timed out, found nobody, or was answered 408, 425, 429, 500, 502, 503 or 504."""
    backoff_seconds: float = Field(default=0.5, gt=0)
    """Wait before the first further attempt; it doubles with each, up to 30, and the endpoint may ask for more."""
    deadline_seconds: float = Field(default=600.0, gt=0)
    """Longest wait for all calls of one batch together; what has no score by then is dropped and counted."""

    @model_validator(mode="after")
    def _address_without_secrets(self) -> Self:
        parts = urlsplit(self.url)
        if "@" in parts.netloc or _SECRET_PARAMETER.search(parts.query):
            # Said without the value: the message may end up in a log.
            raise ValueError(
                "url holds a user, password or token, and no configuration may; put the token into the environment "
                "variable that token_variable names"
            )
        # `port` is read because that is where urlsplit refuses one that does not exist.
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
            raise ValueError(f"url={self.url!r} is no address of an endpoint; write http://host:port/path")
        return self


RewardSource = Annotated[
    ModelSource
    | EnsembleSource
    | FunctionSource
    | HttpSource
    | RegexRule
    | LengthRule
    | LengthPenaltyRule
    | FormatRule
    | ExactAnswerRule
    | NumericAnswerRule,
    Field(discriminator="kind"),
]


class PairsFormat(StrictModel):
    """Rows hold `prompt` (optional), `chosen`, `rejected`: text, or messages (TRL's conventions).

    Where chosen and rejected are whole dialogues, the turns that they share are the prompt.
    """

    kind: Literal["pairs"] = "pairs"
    """Tag of this variant."""
    prompt_field: FieldPath = "prompt"
    """Column of the prompt, or a dotted path into one, such as `info.post` or `turns.0.content`; so for all fields."""
    chosen_field: FieldPath = "chosen"
    """Column of the preferred response."""
    rejected_field: FieldPath = "rejected"
    """Column of the other one."""
    margin_field: FieldPath | tuple[FieldPath, FieldPath] = "margin"
    """Column of how much better chosen is, in any unit; or two columns with the scores of chosen and rejected."""
    source_field: FieldPath = "source"
    """Column of where a row came from, for accuracy by source."""
    turns: TurnMarks | None = None
    """Marks of the turns where `chosen` and `rejected` are transcripts, dialogues in one text; `{}` takes those of
    Anthropic's hh-rlhf. Null reads text as it is."""


class RankingsFormat(StrictModel):
    """Rows hold `prompt`, `responses` (texts, or objects with `text`) and `ranking`.

    A ranking is a list of groups of indices into the responses, best first, ties in one group.
    """

    kind: Literal["rankings"] = "rankings"
    """Tag of this variant."""
    prompt_field: FieldPath = "prompt"
    """Column of the prompt, or a dotted path into one; so for all fields."""
    responses_field: FieldPaths = "responses"
    """Column of the list of responses, or a list of columns, one for each."""
    text_field: FieldPath = "text"
    """Key of the text where responses are objects."""
    ranking_field: FieldPath = "ranking"
    """Column of the ranking."""
    source_field: FieldPath = "source"
    """Column of where a row came from, for accuracy by source."""


class LabelledTextFormat(StrictModel):
    """Rows hold one text and a label.

    Each text with a chosen label is compared with texts with a rejected one of the same split, by seed.
    """

    kind: Literal["labelled_text"] = "labelled_text"
    """Tag of this variant."""
    text_field: FieldPath = "text"
    """Column of the text, or a dotted path into one; so for all fields."""
    label_field: FieldPath = "label"
    """Column of the label."""
    chosen_labels: tuple[str | int, ...] = Field(default=(1,), min_length=1)
    """Labels of preferred texts; numbers may be written as text."""
    rejected_labels: tuple[str | int, ...] = Field(default=(0,), min_length=1)
    """Labels of the others."""
    pairs_per_text: int = Field(default=1, ge=1)
    """How many rejected texts each chosen text is compared with.

    So many chosen and as many rejected texts make one comparison, in which every text is encoded once: n squared pairs
    for 2 n texts.
    """


PreferenceFormat = Annotated[PairsFormat | RankingsFormat | LabelledTextFormat, Field(discriminator="kind")]
