"""Which blocks may go: rounds, the sweep, metrics, stopping rules, evaluation.

May import everything from `errors` to `compute`. A new metric goes into `metrics.py`, a stopping rule into
`stopping.py`.
"""
