"""The uncut export against llama.cpp's own converter: same keys, same values, same bytes, same order."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reference import FAMILIES, make_model
from tinysleb.formats.gguf_file import read_gguf

OTHER_VOCABULARY = ("olmo2",)
"""Families whose converter knows no SentencePiece, and no fingerprint of a tokenizer trained here."""


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in OTHER_VOCABULARY])
def test_export_equals_the_converters(
    name: str, llama_cpp_source: Path, run: Callable[..., Any], tmp_path: Path
) -> None:
    family, changes = FAMILIES[name]
    folder = make_model(family, tmp_path / "m", tokenizer="sentencepiece", **changes)
    for type_ in ("f16", "f32"):
        assert run("export", folder, "--gguf", f"{type_}.gguf", "--type", type_).exit_code == 0
        command = [sys.executable, str(llama_cpp_source / "convert_hf_to_gguf.py"), str(folder)]
        subprocess.run(
            [*command, "--outtype", type_, "--outfile", str(tmp_path / f"theirs-{type_}.gguf")],
            env=os.environ | {"PYTHONPATH": str(llama_cpp_source / "gguf-py")},
            check=True,
            capture_output=True,
        )
        ours, theirs = (read_gguf(tmp_path / f"{who}{type_}.gguf") for who in ("", "theirs-"))
        metadata = {key: item for key, item in ours.metadata.items() if not key.startswith("tinysleb.")}
        assert metadata == theirs.metadata
        if not name.startswith("phi"):  # its converter has an order of its own
            assert list(metadata) == list(theirs.metadata)
        assert list(ours.tensors) == list(theirs.tensors)
        for tensor, info in ours.tensors.items():
            assert info.type == theirs.tensors[tensor].type
            np.testing.assert_array_equal(ours.read_bytes(tensor), theirs.read_bytes(tensor))
