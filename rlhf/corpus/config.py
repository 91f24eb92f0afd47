"""Configuration of `rlhf corpus`: where text comes from, which rules it passes, and what counts as a duplicate."""

from importlib.util import find_spec
from typing import Literal

from pydantic import Field, model_validator

from policies.config import StrictModel


class CorpusDataConfig(StrictModel):
    """The collected text."""

    train: str
    """Rows: a local JSON(L)(.gz), Parquet or CSV file, a hub name, or `quickstart/<set>`.

    `[:50%]` or `[100:]` slices.
    """
    on_bad_row: Literal["error", "skip"] = "error"
    """`error` stops at a bad row and names it; `skip` drops, counts and reports it."""


class C4Rules(StrictModel):
    """The cleaning of C4 (Raffel et al. 2020, section 2.2), without its filter by language; null or false is off."""

    citation_markers: bool = True
    """Removes `[1]`, `[citation needed]` and `[edit]` from lines."""
    terminal_punctuation: bool = True
    """Drops lines that do not end in a final mark of a sentence or a closing quotation mark, of any script."""
    min_words_per_line: int | None = Field(default=5, ge=1)
    """Drops lines of fewer words."""
    line_phrases: tuple[str, ...] = (
        "javascript",
        "terms of use",
        "privacy policy",
        "cookie policy",
        "uses cookies",
        "use of cookies",
        "use cookies",
    )
    """Drops lines that hold one of these, in any case; an empty list is off."""
    document_phrases: tuple[str, ...] = ("lorem ipsum",)
    """Drops documents that hold one of these, in any case; an empty list is off."""
    braces: bool = True
    """Drops documents with a curly bracket, which are rarely prose."""
    bad_words: str | None = None
    """Text file with a word or phrase a line; documents that hold one are dropped. None comes with the project."""
    repeated_spans: bool = True
    """Removes three sentences in a row that stood in a document before, or earlier in the same one."""
    min_sentences: int | None = Field(default=3, ge=1)
    """Drops documents of fewer sentences, after everything else."""


class QualityRules(StrictModel):
    """Bounds on whole documents, for any language (Rae et al. 2021, table A1); null is off.

    In scripts without spaces every character counts as a word, and none of them in the mean length of words.
    """

    min_words: int | None = Field(default=50, ge=1)
    """Fewest words of a document."""
    max_words: int | None = Field(default=100_000, ge=1)
    """Most words of a document."""
    min_mean_word_length: float | None = Field(default=3.0, gt=0)
    """Smallest mean length of words, characters."""
    max_mean_word_length: float | None = Field(default=10.0, gt=0)
    """Largest mean length of words, characters."""
    max_symbol_ratio: float | None = Field(default=0.1, ge=0)
    """Most number signs, and most ellipses, for each word."""
    max_bullet_lines: float | None = Field(default=0.9, ge=0, le=1)
    """Largest share of lines that begin with a bullet."""
    max_ellipsis_lines: float | None = Field(default=0.3, ge=0, le=1)
    """Largest share of lines that end in an ellipsis."""
    min_alphabetic_words: float | None = Field(default=0.8, ge=0, le=1)
    """Smallest share of words with a letter."""
    stop_words: tuple[str, ...] = ()
    """Frequent words of the language; an empty list is off. The paper takes the, be, to, of, and, that, have, with."""
    min_stop_words: int = Field(default=2, ge=1)
    """Fewest different ones of `stop_words` in a document."""


class RepetitionRules(StrictModel):
    """Largest shares of a document that repeat in it, for any language (Rae et al. 2021, table A1); null is off."""

    duplicate_lines: float | None = Field(default=0.30, ge=0, le=1)
    """Lines that repeat an earlier one, by number."""
    duplicate_line_characters: float | None = Field(default=0.20, ge=0, le=1)
    """The same by characters."""
    duplicate_paragraphs: float | None = Field(default=0.30, ge=0, le=1)
    """Paragraphs that repeat an earlier one, by number."""
    duplicate_paragraph_characters: float | None = Field(default=0.20, ge=0, le=1)
    """The same by characters."""
    top_ngrams: dict[int, float] = {2: 0.20, 3: 0.18, 4: 0.16}
    """By n: the n words in a row that occur most, by characters they cover; empty is off."""
    duplicate_ngrams: dict[int, float] = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
    """By n: all n words in a row that occur more than once, by characters they cover; empty is off."""


class NearDuplicates(StrictModel):
    """Documents whose sets of word n-grams nearly agree, by MinHash (Broder 1997); needs the extra `corpus`."""

    threshold: float = Field(default=0.8, gt=0, lt=1)
    """Estimated Jaccard similarity from which on the later of two documents is dropped."""
    ngram_words: int = Field(default=5, ge=1)
    """Words of an n-gram."""
    permutations: int = Field(default=128, ge=16)
    """Hash functions of a signature; the estimate has a standard error of at most 0.5 / sqrt of it."""

    @model_validator(mode="after")
    def _library_is_there(self) -> "NearDuplicates":
        if find_spec("datasketch") is None:
            raise ValueError(
                "the library datasketch is not installed; install it with: pip install 'rlhf[corpus]', or set "
                "near_duplicates=null"
            )
        return self


class CorpusConfig(StrictModel):
    """`rlhf corpus`: cleans and deduplicates text, and tells what each rule took away."""

    run_dir: str
    """Folder of this run; refused when it already holds one."""
    data: CorpusDataConfig
    """Rows with `text`; their other columns stay."""
    c4: C4Rules | None = C4Rules()
    """Cleaning line by line, made for English web pages; null leaves it out."""
    quality: QualityRules | None = None
    """Bounds on whole documents; null leaves them out."""
    repetition: RepetitionRules | None = None
    """Bounds on repetition inside a document; null leaves them out."""
    exact_duplicates: bool = True
    """Drops documents that are an earlier one but for case and white space."""
    near_duplicates: NearDuplicates | None = None
    """Drops documents that are nearly an earlier one; null leaves it out. Takes about 1 KB a kept document."""
    compress: bool = True
    """Writes corpus.jsonl.gz instead of corpus.jsonl."""
    examples_per_rule: int = Field(default=3, ge=0)
    """Dropped texts that the report shows of each rule, the first ones."""
    seed: int = Field(default=0, ge=0)
    """Seed of the hash functions."""
