"""Tuning methods that PEFT does not have, added through its own registry; importing this package registers them.

registration   new names among PEFT's methods
layers         what the layers and models of all of them share
bottleneck     adapters behind or beside sub-layers
bitfit         bias terms
output_layer   the output layer
mix_and_match  a prefix and parallel adapters
"""

from policies.tuners.bitfit import BitFitConfig
from policies.tuners.bottleneck import BottleneckConfig
from policies.tuners.mix_and_match import MixAndMatchConfig
from policies.tuners.output_layer import OutputLayerConfig

__all__ = ["BitFitConfig", "BottleneckConfig", "MixAndMatchConfig", "OutputLayerConfig"]
