"""What people really have -> rankings and weighted pairs: scored responses, votes of many raters, win/lose/tie logs.

config             what the rows hold, how strengths are fitted, how raters count, what is written
judgements         the common form: who put which responses in which order
reading            rows -> judgements; one module a shape of row: scores, votes, battles
strengths          a model of rankings, its fit and the conditions under which there is one
conditional_logit  the likelihood all of them share
bradley_terry      pairs, with Davidson's ties
plackett_luce      whole rankings, with Efron's ties
intervals          Fisher and bootstrap intervals of fitted strengths
reliability        how far each rater can be trusted: Crowd-BT, or a file of weights
agreement          Krippendorff's alpha; raters who disagree with everyone
elo                Elo ratings, for comparison
aggregation        the strengths of one prompt's responses -> a ranking, or weighted pairs
"""
