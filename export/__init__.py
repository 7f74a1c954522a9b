"""Writers: a model in, a folder or a file out. May import every room but `commands` and `cli`.

- `writers.py`: `write`, which finds the writer for what was opened and what is wanted; `job.py`: what it gets
- `huggingface.py`: checkpoint → Hugging Face folder
- `gguf_model.py`: checkpoint → GGUF, in the type asked for
- `gguf_copy.py`: GGUF → shorter GGUF, byte for byte, without torch
- `gguf_to_huggingface.py`: GGUF → Hugging Face folder
- `verify.py`, `draft.py`: what a written GGUF is good for

Nothing here knows about the search: a shortened model is a model.
"""
