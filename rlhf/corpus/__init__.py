"""`rlhf corpus`: collected text -> text to pretrain on, and what every rule took away.

config           which rules apply, and their thresholds
segments         lines, sentences and words, in scripts with and without spaces between words
rule             what a rule is: a text in, what stays of it out
c4_rules         the cleaning of C4 (Raffel et al. 2020, section 2.2)
quality_rules    language-agnostic bounds on length, words and symbols (Rae et al. 2021, table A1)
repetition_rules language-agnostic bounds on repeated lines and n-grams (Rae et al. 2021, table A1)
duplicates       documents and spans of three sentences that were there before
near_duplicates  MinHash signatures; the only file that imports datasketch
cleaning         documents through all rules, with a tally for each
command          files and the run folder
page             words and layout
"""
