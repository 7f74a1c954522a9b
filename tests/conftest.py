"""Fixtures: tiny models of each kind, made once a session, and the real one where it was fetched."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

# As the command line does, before torch is loaded: threads that spin make tests on a busy machine take hours.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch
from click.testing import CliRunner, Result

from reference import CORPUS, make_llama
from tinysleb.cli import main
from tinysleb.commands import console
from tinysleb.export import gguf_check
from tinysleb.heal import lessons
from tinysleb.measure import drawn, writing
from tinysleb.measure.prompts import PROMPTS

REAL_MODEL = Path(__file__).parent.parent / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"

SDIST = "llama-cpp-python==0.3.36"

torch.set_num_threads(1)  # the tests' models are tiny, and other tests run beside them


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 6-block Llama of width 64 with grouped queries and a byte-level BPE tokenizer."""
    return make_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def sentencepiece_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same shape with a SentencePiece tokenizer and tied embeddings."""
    folder = tmp_path_factory.mktemp("pieces")
    return make_llama(folder, tokenizer="sentencepiece", tie_word_embeddings=True)


@pytest.fixture(scope="session")
def tiny_gguf(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_folder` exported in f32."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    result = CliRunner().invoke(main, ["export", str(tiny_folder), "--gguf", str(path), "--pre", "smollm"])
    assert result.exit_code == 0, result.output
    return path


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run a tinysleb command line in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real model; `make model` fetches it."""
    if not REAL_MODEL.is_file():
        pytest.skip(f"{REAL_MODEL} is absent: run `make model`")
    return REAL_MODEL


@pytest.fixture(scope="session")
def llama_cpp_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """llama.cpp's source tree out of the sdist of llama-cpp-python."""
    folder = tmp_path_factory.mktemp("sdist")
    download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", SDIST]
    done = subprocess.run([*download, "-d", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{SDIST} cannot be fetched: {done.stderr[-200:]}")
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    (tree,) = folder.glob("*/vendor/llama.cpp")
    return tree


@pytest.fixture(autouse=True)
def no_progress_in_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is printed does not depend on how long it takes."""
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", math.inf)


@pytest.fixture(autouse=True)
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where models are compared, each gives two short answers to a few questions, of which it draws one."""
    monkeypatch.setattr(writing.questions, "__defaults__", (PROMPTS[:6],))
    monkeypatch.setattr(drawn, "DRAWS", 1)
    for module in (drawn, writing):
        monkeypatch.setattr(module, "WRITTEN", 16)


@pytest.fixture
def short_documentation(monkeypatch: pytest.MonkeyPatch) -> str:
    """In place of Python's own, which takes seconds to tokenise; the text."""
    text = "".join(CORPUS) * 60
    monkeypatch.setattr("pydoc_data.topics.topics", {"text": text})
    return text


@pytest.fixture(autouse=True)
def few_lessons(monkeypatch: pytest.MonkeyPatch) -> None:
    """Distillation draws its text from less of Python's library than it has."""
    monkeypatch.setattr(lessons, "MOST_GIVEN", 2**14)


@pytest.fixture(autouse=True)
def header_check_alone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp is not asked about every GGUF that is written, which takes a process each; in `real_files` it
    is."""
    if "real_files" not in request.node.nodeid:
        monkeypatch.setattr(gguf_check, "is_installed", lambda: False)
