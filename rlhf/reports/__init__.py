"""Pages that a run leaves behind, readable without an account or a network.

page      what every page is made of: headline, verdicts, sections, tables, samples -> one self-contained HTML file
charts    line, band, point and bar charts as SVG
axes      ticks and labels of a chart's axes
closing   the last words of a training stage on the terminal
training  the page of any training run, from its metrics.jsonl and samples.jsonl
health    what the health rules found, for the top of a page
rankings  the page of aggregated judgements: models, raters, ranked responses; `ranking_verdicts`: what to conclude
reward    the page of a reward model; with `reward_verdicts`, `reward_sections`, `reward_charts`
"""
