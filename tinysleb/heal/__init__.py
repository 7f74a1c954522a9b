"""Repair of a shortened model.

May import everything from `errors` to `search`.
"""
