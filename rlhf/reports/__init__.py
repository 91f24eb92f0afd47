"""Pages that a run leaves behind, readable without an account or a network.

page      what every page is made of: headline, verdicts, sections, tables, samples -> one self-contained HTML file
charts    line, band and histogram charts as SVG
axes      ticks and labels of a chart's axes
training  the page of any training run, from its metrics.jsonl and samples.jsonl
reward    the page of a reward model: accuracy beside its baselines, worst mistakes
"""
