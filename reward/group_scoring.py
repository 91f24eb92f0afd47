"""Groups of sequences -> raw scores with gradients, what the sequences of a group have in common read once.

Owns the choice between one packed row and padded rows. The forward passes are `reward.model`, padded rows are put
together by `reward.scoring`.
"""

from collections.abc import Sequence

from torch import Tensor

from policies.shared_prefix import pack_groups
from reward.encoding import TokenIds
from reward.model import RewardModel
from reward.scoring import score_sequences


def score_groups(model: RewardModel, groups: Sequence[Sequence[TokenIds]], *, token_budget: int) -> Tensor:
    """(S,) float32 raw scores in the order of groups and sequences, with gradients where they are enabled.

    Args:
        model: The reward model.
        groups: G groups of arrays of at least two ids; one packed row holds all of them.
        token_budget: Padded tokens of one forward pass, for models that read padded rows.
    """
    if model.shares_prefixes:
        return model.raw_group_scores(pack_groups(groups, model.device))
    sequences = [sequence for group in groups for sequence in group]
    with model.attention_for(max(map(len, sequences))):
        return score_sequences(model, sequences, token_budget=token_budget)
