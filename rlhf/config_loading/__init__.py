"""YAML and `a.b=value` -> a frozen, validated config; imports nothing heavy.

loader  default < YAML < override -> config class; descriptions of its fields
yaml    the YAML dialect of configs
fields  what a config class holds
errors  validation errors in a config writer's words
"""
