"""Responses -> scores.

config         sources of scores, formats of comparisons
interface      RewardFn, RewardOutput: what every source offers
rules          verifiable rewards
model          learned rewards
losses         pairwise and K-wise losses
preferences    pairs and rankings -> tensors
composite      several sources -> one score, kept apart as well
normalization  mean score 0 on demonstrations or SFT outputs
evaluation     accuracy, margin and loss on held-out comparisons
worker         the Ray actor around it
"""
