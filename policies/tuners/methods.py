"""All tuning methods of this package. Importing this file registers them with PEFT, whose loaders then know them."""

from policies.tuners.bitfit import BitFitConfig
from policies.tuners.bottleneck import BottleneckConfig
from policies.tuners.mix_and_match import MixAndMatchConfig
from policies.tuners.output_layer import OutputLayerConfig

__all__ = ["BitFitConfig", "BottleneckConfig", "MixAndMatchConfig", "OutputLayerConfig"]
