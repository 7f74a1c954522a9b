"""Find the reader for a path: the one place that knows all kinds of model files."""

from __future__ import annotations

from pathlib import Path

from tinysleb.checkpoint.gguf_source import open_gguf
from tinysleb.checkpoint.huggingface_source import open_huggingface
from tinysleb.checkpoint.weights import Checkpoint
from tinysleb.errors import TinyslebError
from tinysleb.formats.gguf_file import is_gguf


def open_model(path: Path | str) -> Checkpoint:
    """Open a `.safetensors` file, a Hugging Face folder or a `.gguf`, reading only headers.

    Raises TinyslebError if it is none of these, incomplete, or of a family not modelled.
    """
    path = Path(path)
    if not path.exists():
        raise TinyslebError(f"there is no file or folder {path}")
    if not path.is_dir() and not path.is_file():
        raise TinyslebError(f"{path} is neither a file nor a folder")  # reading a pipe would wait for ever
    if path.is_dir() or path.suffix == ".safetensors":
        return open_huggingface(path)
    if is_gguf(path):
        return open_gguf(path)
    raise TinyslebError(
        f"{path} is not a model that tinysleb can read",
        "give a .safetensors file, a Hugging Face folder with config.json, or a .gguf",
    )
