"""`rlhf rounds`: collect, rank, train a reward model, PPO, and again from the policy that came out.

pipeline     the order of the stages, and where it stops for people
ranking      answers -> rankings, by scores or from a file that people wrote
provenance   which policy gave which comparison, which data trained which model, by checksum
page         report.html: what each round brought
"""
