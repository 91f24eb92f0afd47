"""`rlhf eval`: which of two models answers better, by how much, how sure that is, and what alignment cost.

command          config -> models loaded once each -> summary.json, samples.jsonl, report.html
config           judges that compare, best-of-n, tasks
models           a loaded model and what can be asked of it
answers          prompts, judges and sampling noise, the same for every model
win_rates        outcomes of pairs -> mean and interval over prompts
length_control   the win rate between answers of equal length
comparing        judges that see two answers: both orders asked, disagreement is a tie
endpoint_judge   such a judge behind an OpenAI-compatible endpoint, with its answers kept on disk
best_of_n        what sampling n answers and keeping the best would reach
gold_proxy       gold reward over the distance from the start: fits, peak
tasks            multiple-choice and exact-match rows -> prompts with shots
task_scores      how a model does on them; what was forgotten
setting          data and judges, read and checked before a model loads
measurements     every model asked everything, each loaded once
summary          what was measured, as the numbers of summary.json
verdicts         those numbers in plain sentences
page             report.html; `page_charts` draws
"""
