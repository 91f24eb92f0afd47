"""Configuration of `rlhf classify`: labelled texts solved by patterns and words, or by a head."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Self, cast

from pydantic import BeforeValidator, Field, model_validator

from policies.config import HeadTuning, ModelConfig, StrictModel
from rlhf.config.shared import DataConfig, OptimizerConfig, StageConfig, TrainedModelConfig
from rlhf.runtime.config import CheckpointConfig


def _label_names(value: object) -> object:
    """Labels are texts; YAML and JSON may hold them as numbers."""
    return tuple(map(str, cast(Sequence[object], value))) if isinstance(value, list | tuple) else value


def _label_keys(value: object) -> object:
    if not isinstance(value, dict):
        return value
    items = cast(Mapping[object, object], value).items()
    return {
        str(label): tuple(cast(list[object], words)) if isinstance(words, list) else words for label, words in items
    }


Labels = Annotated[tuple[str, ...], BeforeValidator(_label_names), Field(min_length=2)]
LabelWords = Annotated[dict[str, tuple[str, ...]], BeforeValidator(_label_keys)]


class ClassifyDataConfig(DataConfig):
    """Labelled texts: rows with `text` and `label`."""

    shots_per_class: int | None = Field(default=None, ge=1)
    """Training rows of each label, drawn by `seed`; null takes all."""


class WordsVerbalizer(StrictModel):
    """Words that stand for each label, chosen by hand (PET: Schick and Schuetze 2021)."""

    kind: Literal["words"] = "words"
    """Tag of this variant."""
    words: LabelWords
    """Words of each label, each a single token of the model; a label's score is the mean of their log-probs."""


class SearchedVerbalizer(StrictModel):
    """Words found in the vocabulary by the likelihood ratio of labelled texts (PETAL: Schick et al. 2020)."""

    kind: Literal["search"] = "search"
    """Tag of this variant."""
    words_per_label: int = Field(default=3, ge=1)
    """Words kept for each label."""
    candidates: int = Field(default=500, ge=2)
    """Words compared: those that the model gives the highest mean probability in the answer slot."""
    shortest_word: int = Field(default=3, ge=1)
    """Letters that a word has at least."""


Verbalizer = Annotated[WordsVerbalizer | SearchedVerbalizer, Field(discriminator="kind")]


class WrittenPrompts(StrictModel):
    """Patterns written by hand."""

    kind: Literal["written"] = "written"
    """Tag of this variant."""
    templates: tuple[str, ...] = Field(min_length=1)
    """Texts with `{text}` once and `{answer}` once, at the end; several form an ensemble."""
    verbalizer: Verbalizer
    """What the answers mean."""


class SubPrompt(StrictModel):
    """One question of a composed prompt."""

    template: str
    """Text with `{text}` once and `{answer}` once, at the end."""
    words: LabelWords
    """Words of each label; here several labels may share a word."""


class ComposedPrompts(StrictModel):
    """Several questions about a text, answered together: their scores of a label add up (PTR: Han et al. 2021)."""

    kind: Literal["composed"] = "composed"
    """Tag of this variant."""
    parts: tuple[SubPrompt, ...] = Field(min_length=2)
    """The questions."""


class GradientPrompts(StrictModel):
    """A pattern whose trigger tokens are found along the gradient (AutoPrompt: Shin et al. 2020)."""

    kind: Literal["gradient"] = "gradient"
    """Tag of this variant."""
    template: str
    """Text with `{text}`, then `{trigger}`, then `{answer}`, each once."""
    verbalizer: Verbalizer
    """What the answers mean; `search` looks with the first, random triggers in place."""
    trigger_tokens: int = Field(default=3, ge=1)
    """Tokens in place of `{trigger}`."""
    steps: int = Field(default=20, ge=1)
    """Replacements that are tried; each takes the next trigger token in turn."""
    candidates: int = Field(default=16, ge=1)
    """Tokens of the best first-order estimate that are tried in each step."""
    examples_per_step: int = Field(default=32, ge=1)
    """Labelled texts that a step is judged on."""


class GeneratedPrompts(StrictModel):
    """Patterns sampled from a language model, the best on the labelled texts kept (after LM-BFF: Gao et al. 2021)."""

    kind: Literal["generated"] = "generated"
    """Tag of this variant."""
    generator: ModelConfig | None = None
    """Model that continues texts; null is the model itself."""
    verbalizer: Verbalizer
    """What the answers mean; `search` looks with the pattern `{text}{answer}`."""
    samples: int = Field(default=64, ge=1)
    """Continuations that are sampled."""
    pattern_tokens: int = Field(default=5, ge=1)
    """Longest pattern, in tokens of the generator."""
    keep: int = Field(default=3, ge=1)
    """Patterns kept, as an ensemble: those of the lowest cross-entropy."""
    ranking_texts: int = Field(default=64, ge=1)
    """Labelled texts that patterns are compared on."""


Prompts = Annotated[WrittenPrompts | ComposedPrompts | GradientPrompts | GeneratedPrompts, Field(discriminator="kind")]


class NoContext(StrictModel):
    """A text is asked about alone."""

    kind: Literal["none"] = "none"
    """Tag of this variant."""


class Demonstrations(StrictModel):
    """Solved texts stand in front, the same number of each label (LM-BFF: Gao et al. 2021, section 6)."""

    kind: Literal["demonstrations"] = "demonstrations"
    """Tag of this variant."""
    per_class: int = Field(default=1, ge=1)
    """Solved texts of each label."""
    sets: int = Field(default=1, ge=1)
    """Draws of solved texts; each is one more view of a text in the ensemble."""
    separator: str = "\n"
    """Stands between two texts."""


class NoCalibration(StrictModel):
    """Label scores are taken as they are."""

    kind: Literal["none"] = "none"
    """Tag of this variant."""


class ContentFreeCalibration(StrictModel):
    """Label scores are divided by those of texts that say nothing (Zhao et al. 2021)."""

    kind: Literal["content_free"] = "content_free"
    """Tag of this variant."""
    texts: tuple[str, ...] = Field(default=("N/A", "[MASK]", "nothing"), min_length=1)
    """Texts that say nothing."""


class ClozeMethod(StrictModel):
    """The model says the next word after a pattern; the label whose words are likelier wins."""

    kind: Literal["cloze"] = "cloze"
    """Tag of this variant."""
    prompts: Prompts
    """Patterns and words: written, composed or found."""
    context: Annotated[NoContext | Demonstrations, Field(discriminator="kind")] = NoContext()
    """What stands in front of a text."""
    ensemble: Literal["log_probs", "probabilities"] = "log_probs"
    """Mean over the views of a text: of the labels' log-probs, or of their probabilities."""
    calibration: Annotated[NoCalibration | ContentFreeCalibration, Field(discriminator="kind")] = NoCalibration()
    """Whether what the model prefers without a text is taken out when labels are predicted."""


class HeadMethod(StrictModel):
    """A linear layer on the state of the text's last token, without words."""

    kind: Literal["head"] = "head"
    """Tag of this variant."""
    trains: Literal["head", "model_and_head"] = "model_and_head"
    """`head` leaves the model as it was loaded; `model_and_head` also trains what `model.tuning` says."""


ClassifyMethod = Annotated[ClozeMethod | HeadMethod, Field(discriminator="kind")]


class ClassifySettings(StrictModel):
    """A classification task and how it is solved, without a place for the run."""

    model: TrainedModelConfig
    """A causal language model, and what of it trains."""
    data: ClassifyDataConfig
    """Labelled texts."""
    labels: Labels
    """All labels."""
    method: ClassifyMethod
    """Patterns and words, or a head."""
    epochs: float = Field(default=3.0, ge=0)
    """Passes over the training rows; 0 trains nothing (zero-shot, or in-context with demonstrations)."""
    examples_per_step: int = Field(default=32, ge=1)
    """Texts of one optimizer step."""
    micro_batch_tokens: int = Field(default=4096, ge=1)
    """Tokens of one forward and backward pass."""
    max_tokens: int = Field(default=256, ge=4)
    """Longest text with pattern and demonstrations; a longer one is a bad row."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=3e-4, warmup_fraction=0.06)
    """Optimizer."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When states are saved."""

    @model_validator(mode="after")
    def _labels_have_words(self) -> Self:
        if len(set(self.labels)) < len(self.labels):
            raise ValueError(f"labels={list(self.labels)}: a label stands there twice; name each once")
        for words in _word_lists(self.method):
            _require_words(words, self.labels)
        if self.data.eval is None:
            raise ValueError("data.eval is null; a classification ends with its accuracy: give held-out rows")
        return self

    @model_validator(mode="after")
    def _what_is_asked_has_an_effect(self) -> Self:
        if self.checkpoint.keep_best is not None:
            raise ValueError(
                f"checkpoint.keep_best.metric={self.checkpoint.keep_best.metric}: held-out texts are labelled once, at "
                "the end, so no step is the best of several; set checkpoint.keep_best=null"
            )
        trains_both = isinstance(self.method, HeadMethod) and self.method.trains == "model_and_head"
        if trains_both and isinstance(self.model.tuning, HeadTuning):
            raise ValueError(
                "model.tuning.kind=head with method.kind=head: the label head does not read the output layer over the "
                "vocabulary, which would train without effect; set method.trains=head"
            )
        return self


class ClassifyConfig(ClassifySettings, StageConfig):
    """`rlhf classify`: labels for texts from a language model."""


def _word_lists(method: ClassifyMethod) -> list[dict[str, tuple[str, ...]]]:
    if not isinstance(method, ClozeMethod):
        return []
    if isinstance(method.prompts, ComposedPrompts):
        return [part.words for part in method.prompts.parts]
    verbalizer = method.prompts.verbalizer
    return [verbalizer.words] if isinstance(verbalizer, WordsVerbalizer) else []


def _require_words(words: dict[str, tuple[str, ...]], labels: tuple[str, ...]) -> None:
    for label in labels:
        if not words.get(label):
            raise ValueError(f"words: label {label!r} has none; give at least one word for each of {list(labels)}")
    if unknown := [label for label in words if label not in labels]:
        raise ValueError(f"words: {unknown[0]!r} is no label; allowed are {list(labels)}")
