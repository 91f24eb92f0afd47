"""Tuning methods that PEFT does not have, added through its own registry.

methods        all of them; importing it registers them, so that PEFT loads their folders
registration   new names among PEFT's methods
layers         what the layers and models of all of them share
bottleneck     adapters behind or beside sub-layers
bitfit         bias terms
output_layer   the output layer
mix_and_match  a prefix and parallel adapters
"""
