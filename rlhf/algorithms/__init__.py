"""The formulas of RLHF as pure functions on tensors: no models, no devices, no state beyond a KL coefficient.

- `masked`: sums, means, variance and whitening over the tokens that a mask selects; the normalisation of every loss.
- `kl`: per-token KL estimators (k1, k2, k3), nats per sequence, fixed and adaptive KL coefficients.
- `advantages`: scores and KL to per-token rewards, the missing end-of-sequence rule, generalised advantage estimation.
- `policy_losses`: PPO's clipped surrogate, dual clip, truncated importance weights.
- `value_losses`: the clipped value loss and explained variance.
- `preference_losses`: pairwise and K-wise losses for reward models, with ties, soft labels, margins and centring.
- `listwise_losses`: the Plackett-Luce loss for reward models.
- `language_model_losses`: the pretraining term of PPO-ptx.

Conventions: index t of a (B, R) tensor belongs to response token t; a mask is bool and says what True selects; inputs
are expected in float32 (statistics in half precision are not fit for ratios) and results keep the input's dtype. A loss
returns `(loss, metrics)` with detached metrics. Given the minibatch's count, the losses of its micro-batches add up to
the loss of the whole, and so does every metric, except those whose key ends in `_max`, which combine by maximum.
"""
