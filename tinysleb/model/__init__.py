"""The maths of a model: one block, the head, sampling; and reading blocks in order.

May import everything from `errors` to `text`. Knows nothing of pruning.
"""
