"""Tokenizers, and windows of tokens to calibrate, heal and evaluate on.

May import what lies below: `errors`, `formats`, `plan`, `checkpoint`. A new pre-tokenizer is one record.
"""
