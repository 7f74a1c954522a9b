"""What a model can still do, and how fast: writing, tasks, speed.

Nothing here changes a model; what it says of text token by token is `search.comparison`.
"""
