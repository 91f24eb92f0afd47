"""Configuration of rewards: the sources of scores in a run, and how a reward model is trained."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from policies.config import StrictModel


class _Source(StrictModel):
    name: str | None = None
    """Name under which the component is logged; null derives it from the source."""
    weight: float = 1.0
    """Factor of this source in the sum."""


class ModelSource(_Source):
    """A learned reward model."""

    kind: Literal["model"] = "model"
    """Tag of this variant."""
    path: str
    """Folder written by `rlhf reward` (or any AutoModelForSequenceClassification with one label)."""
    reads: Literal["prompt_and_response", "response"] = "prompt_and_response"
    """What the model is shown; `response` for models of text quality that were trained without prompts."""
    normalization: Literal["stored", "none"] = "stored"
    """`stored` applies the normalisation that `rlhf reward` saved with the model.

    `none` takes raw scores, for models from elsewhere.
    """
    max_tokens: int = Field(default=512, ge=2)
    """Longest input in tokens, at most the model's context; a longer one loses its beginning."""
    micro_batch_tokens: int = Field(default=8192, ge=1)
    """Padded tokens of one forward pass."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the backbone's weights; the score itself is computed in float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device; `auto` takes the GPU that the process sees, else the CPU."""


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


class ExactAnswerRule(_Source):
    """1.0 where the response ends with the row's answer, both stripped and lower-cased, else 0.0."""

    kind: Literal["exact_answer"] = "exact_answer"
    """Tag of this variant."""
    field: str = "answer"
    """Column of the data row that holds the answer."""


RewardSource = Annotated[
    ModelSource | FunctionSource | RegexRule | LengthRule | ExactAnswerRule, Field(discriminator="kind")
]


class PairsFormat(StrictModel):
    """Rows hold `prompt` (optional), `chosen`, `rejected`: text or message lists (TRL's conventions)."""

    kind: Literal["pairs"] = "pairs"
    """Tag of this variant."""


class RankingsFormat(StrictModel):
    """Rows hold `prompt`, `responses` (texts, or objects with `text`) and `ranking`.

    A ranking is a list of groups of indices into the responses, best first, ties in one group.
    """

    kind: Literal["rankings"] = "rankings"
    """Tag of this variant."""


class LabelledTextFormat(StrictModel):
    """Rows hold one text and a 0/1 label.

    Each text of label 1 is compared with texts of label 0 of the same split, by seed.
    """

    kind: Literal["labelled_text"] = "labelled_text"
    """Tag of this variant."""
    text_field: str = "text"
    """Column of the text."""
    label_field: str = "label"
    """Column of the label, 1 preferred over 0."""
    pairs_per_text: int = Field(default=1, ge=1)
    """How many rejected texts each chosen text is compared with.

    So many chosen and as many rejected texts make one comparison, in which every text is encoded once: n squared pairs
    for 2 n texts.
    """


PreferenceFormat = Annotated[PairsFormat | RankingsFormat | LabelledTextFormat, Field(discriminator="kind")]
