import numpy as np
import pytest

from reward.rankings.config import FitConfig
from reward.rankings.judgements import Judgement
from reward.rankings.standings import standings
from reward.rankings.strengths import NotEstimableError

NAMES = ["ant", "bee", "cat"]
JUDGEMENTS = [
    Judgement(((1,), (0, 2)), 0),
    Judgement(((0,), (1,), (2,)), 1),
    Judgement(((2,), (1,)), 2),
    Judgement(((1,), (0,)), 3),
]


def rank(judgements, *, weights=None, **fit):
    config = FitConfig.model_validate({"bootstrap_resamples": 0} | fit)
    weights = np.ones(len(judgements)) if weights is None else np.asarray(weights)
    return standings(judgements, weights, NAMES, config, seed=0)


def test_models_stand_strongest_first_with_their_record():
    found = rank(JUDGEMENTS, prior_std=1.0)

    assert [model.model for model in found.models] == ["bee", "ant", "cat"]
    # Ranking 0 ties ant and cat; ranking 1 has three decided pairs.
    assert [(model.wins, model.ties, model.losses) for model in found.models] == [(4, 0, 2), (2, 1, 2), (1, 1, 3)]
    assert found.models[0].bootstrap_low is None
    assert found.tie_parameter is not None
    assert sum(model.strength for model in found.models) == pytest.approx(0.0, abs=1e-9)


def test_the_model_of_rankings_is_chosen():
    by_pairs, by_choices = (rank(JUDGEMENTS, prior_std=1.0, model=name) for name in ("bradley_terry", "plackett_luce"))

    assert by_choices.tie_parameter is None
    assert by_choices.models[0].strength != pytest.approx(by_pairs.models[0].strength, abs=1e-3)


def test_a_judgement_without_weight_links_nobody():
    weights = [1.0, 1.0, 0.0, 1.0]

    assert rank(JUDGEMENTS).models[0].model == "bee"
    with pytest.raises(NotEstimableError, match=r"'ant', 'bee' never lost"):
        rank([*JUDGEMENTS[1:], Judgement(((0,), (2,)), 0)], weights=np.roll(weights, -1))
