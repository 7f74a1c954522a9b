"""Find the reader for a path: the one place that knows all kinds of model files."""

from __future__ import annotations

from pathlib import Path

from tinysleb.checkpoint.gguf_source import open_gguf
from tinysleb.checkpoint.huggingface_source import open_huggingface
from tinysleb.checkpoint.weights import Checkpoint
from tinysleb.checkpoint.wrong_model import refuse_absent, refuse_wrong_file, refuse_wrong_folder
from tinysleb.errors import TinyslebError
from tinysleb.formats.gguf_file import is_gguf
from tinysleb.formats.model_files import refuse_special_files


def open_model(path: Path | str, pre: str | None = None) -> Checkpoint:
    """Open a `.safetensors` file, a Hugging Face folder or a `.gguf`, reading only headers.

    `pre`: llama.cpp's name for how a GGUF's byte-level BPE splits text (`tokenizer.ggml.pre`), where the file
    does not say, or says something else; a copy of the model then says it. Raises TinyslebError if it is none
    of these, incomplete, or of a family not modelled.
    """
    path = Path(path)
    refuse_absent(path)
    if not path.is_dir() and not path.is_file():
        raise TinyslebError(f"{path} is neither a file nor a folder")  # reading a pipe would wait for ever
    if path.is_file() and is_gguf(path) and path.suffix != ".safetensors":
        return open_gguf(path, pre)
    if pre is not None:
        raise TinyslebError(f"{path} is not a GGUF, so that --pre cannot be used", "leave it out")
    refuse_special_files(path if path.is_dir() else path.parent)
    if path.is_dir():
        refuse_wrong_folder(path)
        return open_huggingface(path)
    refuse_wrong_file(path)
    if path.suffix == ".safetensors":
        return open_huggingface(path)
    raise TinyslebError(
        f"{path} is not a model that tinysleb can read",
        "give a .safetensors file, a Hugging Face folder with config.json, or a .gguf",
    )
