"""Responses -> scores.

interface         the contract: RewardRequest in, RewardOutput out, failures as data
composite         the sources of a run -> one RewardFn: weighted sum, components by name
rules, functions  verifiable rules; Python functions `module:function`
answers           what a response says the answer is: last number, last words, tagged sections
http_source       scores of an endpoint: batches, failures; http_client: attempts; http_protocol: what travels
model             the learned reward model, to train and to score with
classifiers       sequence-classification backbones of transformers: loading, a new head, LoRA
shared_model      the same reward model as adapter and head on the policy's own base; what a critic starts from
scoring           requests -> token ids -> normalised scores of a learned model
encoding          one prompt and response -> the ids a reward model reads
normalization     mean 0 and standard deviation 1 of the scores, or logits, stored with the model
preferences       data rows -> comparisons: pairs, K-wise rankings, labelled texts
rankings          many raters, scores or battles -> one ranking a prompt; strengths of models, agreement
row_fields        fields of a data row, and what is said about a bad one
demonstrations    rows with prompt and completion -> token ids: what the scale is fitted on
label_strength    how sure and how strong the label of a row is: weight, margin, strengths, win probability
preference_batch  comparisons -> token ids and index tensors for the ranking loss
group_scoring     groups of sequences -> raw scores with gradients, what they share read once
ensemble          several models as one: mean of their scores, penalty where they disagree
assessment        everything that is measured of scores on held-out comparisons, in one call:
evaluation        accuracy with interval, margin and loss; the lead over another model
intervals         95 % intervals over prompts: of shares, of means, of paired differences
calibration       expected calibration error, reliability, temperature scaling
slices            accuracy by length difference, score difference, label strength, source
length_bias       how much a score has to do with the length of the response
distribution      histogram and moments of scores
baselines         what a learned model must beat: length, bag of words, naive Bayes
worker            the reward role as a plain class
"""
