"""Classification by a language model: patterns and words (prompt learning), or a linear head.

texts       labelled rows, shots
patterns    templates -> token ids; solved texts in front
verbalizer  words -> token ids; which words exist as one token
cloze       patterns + words -> label log-probabilities
head        a linear head -> label log-probabilities
word_search, trigger_search, pattern_search   words and patterns found from labelled texts
prompts     the prompts a configuration asks for, found or given
predicting  label log-probabilities over all views of many texts
outcome     accuracy, interval, confusion
training    the optimizer steps
stage       `rlhf classify`
page        its report
methods     `rlhf methods`: ways of tuning compared; method_table, method_page: what comes of it
"""
