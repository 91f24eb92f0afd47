"""What both sides of `bench_reward.py` train on: a random Llama, and ranked responses of random words.

Owns the model, the tokenizer and the data, the same as those of the peer: a response that ranks higher has more words
of the upper half of the vocabulary.
"""

import json
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Case:
    """One comparison of both sides.

    Attributes:
        name: Key in the results.
        responses: K, ranked responses of a prompt. The peer gets all K-choose-2 pairs.
        is_varied: Response lengths are uniform in [R / 4, R] instead of R.
        prompts_per_step: Prompts of an optimizer step.
        target: Pairs per second, ours over theirs, that we promise.
    """

    name: str
    responses: int
    is_varied: bool
    prompts_per_step: int
    target: float

    @property
    def pairs_per_step(self) -> int:
        """Pairs of an optimizer step."""
        return self.prompts_per_step * self.responses * (self.responses - 1) // 2


CASES = (
    Case("k2_fixed_length", responses=2, is_varied=False, prompts_per_step=16, target=1.5),
    Case("k2_varied_length", responses=2, is_varied=True, prompts_per_step=16, target=2.5),
    Case("k6", responses=6, is_varied=False, prompts_per_step=2, target=6.0),
)


def write_model(folder: Path, options: Namespace) -> None:
    """A Llama of the peer's shape, with random weights, and a tokenizer whose words are token ids."""
    vocabulary = options.vocabulary
    words = {f"w{index}": index for index in range(vocabulary - 2)} | {"<eos>": vocabulary - 2, "<pad>": vocabulary - 1}
    word_level = Tokenizer(models.WordLevel(words, unk_token="w0"))
    word_level.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=word_level, pad_token="<pad>", eos_token="<eos>")
    heads = max(1, options.hidden // 64)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        intermediate_size=int(8 * options.hidden / 3 / 32 + 0.5) * 32,
        max_position_embeddings=max(512, options.prompt_tokens + options.response_tokens + 1),
        bos_token_id=None,
        eos_token_id=vocabulary - 2,
        pad_token_id=vocabulary - 1,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_rows(path: Path, case: Case, options: Namespace) -> None:
    """Rankings for every step, from the peer's random numbers in the peer's order."""
    generator = torch.Generator().manual_seed(0)
    half, steps = (options.vocabulary - 2) // 2, options.warmup + options.steps
    rows: list[str] = []
    for _ in range(case.prompts_per_step * steps):
        prompt = torch.randint(0, 2 * half, (options.prompt_tokens,), generator=generator)
        responses: list[str] = []
        for rank in range(case.responses):
            length = options.response_tokens
            if case.is_varied:
                length = int(torch.randint(length // 4, length + 1, (1,), generator=generator))
            is_upper = torch.rand(length, generator=generator) < 0.8 - 0.6 * rank / (case.responses - 1)
            ids = torch.randint(0, half, (length,), generator=generator) + half * is_upper
            responses.append(" " + _words(ids))
        ranking = list(range(case.responses))
        rows.append(json.dumps({"prompt": _words(prompt), "responses": responses, "ranking": ranking}))
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


def _words(ids: torch.Tensor) -> str:
    return " ".join(f"w{index}" for index in ids.tolist())
