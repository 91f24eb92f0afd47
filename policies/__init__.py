"""Models that give tokens a probability or a value.

config         model, precision, attention, adapters
tokenization   chat template, special tokens, prompt rendering
tokenizer_models byte-level BPE, WordPiece and Unigram
encoder_decoder T5-like models: loading, log-probs of targets, generation
backbone       model + tokenizer + adapters: token ids -> hidden states and logits; loading: the single way to load one
quantization   frozen linear layers in 8 or 4 bits (QLoRA)
adapters       named adapters on one base: policy, critic, reward, reference
peft_configs   from `model.tuning` to PEFT's configuration; tuners: methods that PEFT does not have
injected_layers, virtual_tokens, virtual_prefix, pissa   how methods enter a model
base_identity  which base an adapter belongs to
attention      which attention implementation computes fastest
packed_rows    rows of unlike length as one; packed_attention: who attends to whom in it
shared_prefix  sequences with common beginnings -> one packed row; shared_prefix_attention: who attends to whom in it
head_blocks, plain_attention   attention by plain matrix products; rotary_attention: layers of the Llama family with it
final_layer    the end of the last layer, computed only where its output is read
logprobs       hidden states -> token log-probs and entropy; the only next-token shift in the project
causal         the trainable policy
reference      the frozen reference
scalar_head    backbone + one linear output, shared by value and reward models
label_head     one linear output of several labels
value          per-token values
shrinking      smaller models cut out of larger ones
sharding       decoder layers cut over processes
checkpoint     weights + tokenizer + metadata, written atomically
disk           what a disk refuses, as one error that names the file
model_shape    the sizes of a model that is not loaded
"""
