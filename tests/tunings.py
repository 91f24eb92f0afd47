"""Every tuning method in a small form, for the tests that hold for all of them."""

from policies.config import (
    AdapterTuning,
    BitFitTuning,
    BottleneckTuning,
    HeadTuning,
    Ia3Tuning,
    LoraTuning,
    MixAndMatchTuning,
    PrefixTuning,
    PromptTuning,
    PTuning,
    PTuningV2,
)

TUNINGS: dict[str, AdapterTuning] = {
    "lora": LoraTuning(rank=2),
    "lora_embeddings": LoraTuning(rank=2, embeddings=True),
    "rslora": LoraTuning(rank=2, variant="rslora"),
    "dora": LoraTuning(rank=2, variant="dora"),
    "pissa": LoraTuning(rank=2, variant="pissa"),
    "ia3": Ia3Tuning(),
    "houlsby": BottleneckTuning(size=3),
    "pfeiffer": BottleneckTuning(size=3, placement="pfeiffer", activation="gelu"),
    "parallel": BottleneckTuning(size=3, placement="parallel", scale=4.0),
    "bitfit": BitFitTuning(add_missing=True),
    "head": HeadTuning(),
    "prefix": PrefixTuning(virtual_tokens=3, projection_size=5),
    "p_tuning_v2": PTuningV2(virtual_tokens=3),
    "prompt": PromptTuning(virtual_tokens=3),
    "p_tuning_mlp": PTuning(virtual_tokens=3, encoder="mlp", encoder_size=5),
    "p_tuning_lstm": PTuning(virtual_tokens=3, encoder="lstm", encoder_size=5),
    "mix_and_match": MixAndMatchTuning(virtual_tokens=3, size=3),
}
"""By a name for the test."""

VIRTUAL = ("prefix", "p_tuning_v2", "prompt", "p_tuning_mlp", "p_tuning_lstm", "mix_and_match")
"""Those that put virtual tokens before every row; the others change nothing until they are trained."""

INJECTED = tuple(name for name in TUNINGS if name not in VIRTUAL)
