"""The other way to a smaller file: the original in smaller types, made by llama.cpp."""

from __future__ import annotations

from pathlib import Path

from gguf import LlamaFileType

from tinysleb.errors import TinyslebError, listed, shown

QUANTS = {kind.name.removeprefix("MOSTLY_"): int(kind) for kind in LlamaFileType if "MOSTLY_" in kind.name}
"""llama-quantize's names of file types, and their numbers."""


def file_type(name: str) -> int:
    """The number of a file type. Raises TinyslebError for a name that llama.cpp does not know."""
    if (found := QUANTS.get(name.upper())) is None:
        raise TinyslebError(
            f"{shown(name)} is not a type of file in llama.cpp", f"known: {listed(list(QUANTS), 99)}"
        )
    return found


def quantize(source: Path, target: Path, name: str, threads: int) -> None:
    """Write a GGUF with the matrices in another type, as `llama-quantize --allow-requantize` does.

    Raises TinyslebError if llama.cpp cannot: the smallest types need an importance matrix.
    """
    from cyllama.llama import llama_cpp

    llama_cpp.disable_logging()
    params = llama_cpp.LlamaModelQuantizeParams()
    params.ftype, params.nthread, params.allow_requantize = file_type(name), threads, True
    try:
        llama_cpp.model_quantize(str(source), str(target), params)
    except (ValueError, RuntimeError) as error:
        raise TinyslebError(f"llama.cpp does not make {name} of {source}: {error}") from error
