"""Configuration of `rlhf rankings`: what the rows hold, how strengths are fitted, how raters count, what is written."""

from typing import Annotated, Literal

from pydantic import Field

from policies.config import StrictModel
from reward.format_fields import FieldPath, FieldPaths


class _ResponsesFormat(StrictModel):
    prompt_field: FieldPath = "prompt"
    """Column of the prompt, or a dotted path into one, such as `info.post` or `turns.0.content`; so for all fields."""
    responses_field: FieldPaths = "responses"
    """Column of the list of responses, or a list of columns, one for each."""
    text_field: FieldPath = "text"
    """Key of the text where responses are objects."""
    model_field: FieldPath = "model"
    """Key of the model where responses are objects, else a column; may be absent."""


class ScoredFormat(_ResponsesFormat):
    """Rows hold scored responses.

    Either `prompt` and `responses`: objects with `text` and the score (and `model`), or texts beside a list `scores`.
    Or one response a row: `prompt`, `response`, the score (and `model`); rows of one prompt are put together. A
    response that is scored several times counts with the mean.
    """

    kind: Literal["scored"] = "scored"
    """Tag of this variant."""
    response_field: FieldPath = "response"
    """Column of the response where rows hold one."""
    score_field: FieldPath = "score"
    """Column, or key of a response, with the score, a number."""
    scores_field: FieldPaths = "scores"
    """Column of the list of scores beside texts, or a list of columns, one for each response."""
    best_score: Literal["highest", "lowest"] = "highest"
    """Which scores are good; `lowest` for ranks that count from the best."""
    rater_field: FieldPath | None = None
    """Column with who scored; null where nobody is named. With raters, each one's scores become that one's ranking, so
    that their scales need not agree, and strengths are fitted to the rankings."""
    tie_margin: float = Field(default=0.0, ge=0)
    """Responses whose score is at most this far below the best of their group tie with it, in units of the score."""


class VotesFormat(_ResponsesFormat):
    """Rows hold `prompt`, `responses` (texts, or objects with `text` and `model`), and votes of raters on them.

    Votes are a list `votes`, or one vote stands in the row itself. A vote has either `ranking` (groups of indices, best
    first, ties in one group) or `choice` (the index of the one preferred to all others, or "tie"). Rows of one prompt
    are put together, whichever of its responses each compares.
    """

    kind: Literal["votes"] = "votes"
    """Tag of this variant."""
    votes_field: FieldPath = "votes"
    """Column of the list of votes; may be absent, then the row is one vote."""
    ranking_field: FieldPath = "ranking"
    """Key of a vote with a ranking."""
    choice_field: FieldPath = "choice"
    """Key of a vote with the one preferred response."""
    choices: dict[str | int, int | Literal["tie"]] = {}
    """What the values of `choice` stand for where they are no indices: `{left: 0, right: 1, equal: tie}`."""
    rater_field: FieldPath | None = "rater"
    """Key of a vote with who voted; null where nobody is named."""


class BattlesFormat(StrictModel):
    """Rows hold `model_a`, `model_b` and `winner`: `model_a`, `model_b` or `tie`, as arenas log them.

    With `prompt`, `response_a` and `response_b` the rows also become rankings or pairs of responses. Whole dialogues
    with the same first turns need no `prompt`.
    """

    kind: Literal["battles"] = "battles"
    """Tag of this variant."""
    rater_field: FieldPath | None = None
    """Column with who voted; null where nobody is named."""
    prompt_field: FieldPath = "prompt"
    """Column with the prompt, or with an id of the question where the log keeps no texts; may be absent."""
    model_a_field: FieldPath = "model_a"
    """Column of the first model's name."""
    model_b_field: FieldPath = "model_b"
    """Column of the second model's name."""
    response_a_field: FieldPath = "response_a"
    """Column of the first model's response; may be absent."""
    response_b_field: FieldPath = "response_b"
    """Column of the second model's response; may be absent."""
    winner_field: FieldPath = "winner"
    """Column of the outcome."""
    outcomes: dict[str | int, Literal["model_a", "model_b", "tie"]] = {}
    """What further values of `winner` stand for: `{left: model_a, right: model_b}`."""


RankingsInput = Annotated[ScoredFormat | VotesFormat | BattlesFormat, Field(discriminator="kind")]


class RankingsDataConfig(StrictModel):
    """What people said."""

    train: str
    """Rows: a local JSON(L)(.gz), Parquet or CSV file, a hub name, or `quickstart/<set>`.

    `[:50%]` or `[100:]` slices.
    """
    format: RankingsInput
    """Shape of the rows."""
    on_bad_row: Literal["error", "skip"] = "error"
    """`error` stops at a bad row and names it; `skip` drops, counts and reports it."""


class FitConfig(StrictModel):
    """Strengths, in log-odds: of two items alone, i is preferred to j with probability sigmoid(s_i - s_j)."""

    model: Literal["bradley_terry", "plackett_luce"] = "bradley_terry"
    """`bradley_terry` takes rankings apart into pairs and has Davidson's ties; `plackett_luce` reads a ranking as a
    series of choices, and a tie as an unknown order."""
    prior_std: float | None = Field(default=None, gt=0)
    """Standard deviation of a Gaussian prior on the strength of each model, log-odds; null is maximum likelihood, which
    is refused where models never met or never lost."""
    response_prior_std: float = Field(default=1.0, gt=0)
    """The same for responses to one prompt. They always have a prior: a handful of votes often agree."""
    tie_margin: float = Field(default=0.0, ge=0)
    """Responses whose fitted strength is at most this far below the best of their group tie with it, log-odds."""
    bootstrap_resamples: int = Field(default=500, ge=0)
    """Resamples of the bootstrap interval of each model's strength; 0 leaves it out."""
    elo_update_points: float = Field(default=16.0, gt=0)
    """K of the Elo ratings that are shown for comparison: the most points one game moves."""


class EqualRaters(StrictModel):
    """One person, one vote."""

    kind: Literal["equal"] = "equal"
    """Tag of this variant."""


class EstimatedRaters(StrictModel):
    """Raters weigh what their votes show of their reliability, estimated with the strengths (Crowd-BT)."""

    kind: Literal["estimated"] = "estimated"
    """Tag of this variant."""
    prior_reliability: float = Field(default=0.8, gt=0.5, lt=1)
    """Reliability of a rater of whom nothing is known; 1/2 is a coin."""
    prior_votes: float = Field(default=2.0, gt=0)
    """How many votes that belief is worth."""


class GivenRaters(StrictModel):
    """Raters weigh what a file says."""

    kind: Literal["given"] = "given"
    """Tag of this variant."""
    path: str
    """Rows with `rater` and `weight`, one for each rater of the data: JSON(L), Parquet or CSV."""


RatersConfig = Annotated[EqualRaters | EstimatedRaters | GivenRaters, Field(discriminator="kind")]


class RankingsConfig(StrictModel):
    """`rlhf rankings`: judgements of many kinds to rankings or weighted pairs, with strengths and agreement."""

    run_dir: str
    """Folder of this run; refused when it already holds one."""
    data: RankingsDataConfig
    """Judgements."""
    fit: FitConfig = FitConfig()
    """Strengths of models, and of responses within a prompt."""
    raters: RatersConfig = EstimatedRaters()
    """How much each rater's votes count; without names all count alike."""
    output: Literal["rankings", "pairs"] = "rankings"
    """`rankings` writes rankings.jsonl with `prompt`, `responses`, `ranking`; `pairs` writes pairs.jsonl with `prompt`,
    `chosen`, `rejected`, `margin`, `weight` and, of fitted strengths, `win_probability`."""
    seed: int = Field(default=0, ge=0)
    """Seed of bootstrap and Elo orders."""
