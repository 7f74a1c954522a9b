"""Writers: a model in, a folder or a file out.

- `huggingface.py`: weights → Hugging Face folder
- `gguf_model.py`: weights → GGUF, in the type asked for
- `gguf_copy.py`: GGUF → shorter GGUF, byte for byte, without torch
- `gguf_to_huggingface.py`: GGUF → Hugging Face folder
- `verify.py`, `draft.py`: what a written GGUF is good for

Nothing here knows about the search: a shortened model is a model.
"""
