"""What a model is, from its headers: families, config, the `Weights` protocol and its sources.

May import `errors`, `formats` and `plan`. A new family is one record in `architectures.py`.
"""
