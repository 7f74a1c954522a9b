"""Text of Python's standard library, against the modules themselves."""

from __future__ import annotations

import inspect
import textwrap
from pathlib import Path

import pytest
import torch

from tinysleb.checkpoint.open_model import open_model
from tinysleb.heal.text import HealingText, text_sources
from tinysleb.text import library
from tinysleb.text.library import code, docstrings, library_files, library_windows
from tinysleb.text.windows import DEFAULT_SOURCE


class Bytes:
    """A token for each byte."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())


def test_docstrings_are_those_that_python_shows() -> None:
    found = docstrings(Path(textwrap.__file__))
    shown = [textwrap.TextWrapper, textwrap.dedent, textwrap.indent, textwrap.wrap]
    assert all(str(inspect.getdoc(item)) in found for item in shown)
    assert "def " not in found


def test_the_library_is_there_without_its_tests() -> None:
    files = library_files()
    assert Path(textwrap.__file__) in files
    assert files == sorted(files)
    assert not any({"test", "site-packages"} & set(path.parts) for path in files)
    assert code(Path(textwrap.__file__)) == inspect.getsource(textwrap)


def test_files_that_are_no_python_give_nothing(tmp_path: Path) -> None:
    for name, content in (("a.py", b"def ("), ("b.py", b"\xff\xfe"), ("c.py", b"\0")):
        (tmp_path / name).write_bytes(content)
        assert docstrings(tmp_path / name) == ""
    assert code(tmp_path / "b.py") == docstrings(tmp_path / "none.py") == code(tmp_path / "none.py") == ""


def test_windows_held_back_come_from_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tmp_path / f"{letter}.py" for letter in "abcdefghijklmnopqr"]
    for path in files:
        path.write_text(path.stem * 500)
    monkeypatch.setattr(library, "library_files", lambda: files)
    fit, held_back = library_windows(Bytes(), code, 20, 60, 30, seed=1)
    assert fit.shape == (60, 20)
    assert held_back.shape == (30, 20)
    fitted, kept = (
        {chr(byte) for byte in windows.flatten().tolist()} - {"\n"} for windows in (fit, held_back)
    )
    assert len(fitted) > 3
    assert kept == set("aiq")
    assert not fitted & kept
    again, _ = library_windows(Bytes(), code, 20, 60, 30, seed=1)
    other, _ = library_windows(Bytes(), code, 20, 60, 30, seed=2)
    assert torch.equal(fit, again)
    assert not torch.equal(fit, other)


@pytest.mark.parametrize("there", [True, False])
def test_the_default_text_to_heal_on(there: bool, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Documentation, docstrings and code alike; without the library, documentation alone."""
    if not there:
        monkeypatch.setattr("sysconfig.get_path", lambda _name: "/nowhere/python.zip")
    sources = text_sources(open_model(tiny_folder), HealingText([], None, 6000, 0, seed=0, length=64))
    assert [len(source.fit) for source in sources] == ([31, 31, 31] if there else [93])
    assert sources[0].name == DEFAULT_SOURCE
    assert all(len(source.held_back) == 16 for source in sources)


def test_never_more_code_than_prose(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of text without limit; a few files of the library stand for all of it."""
    files = library_files()[:30]
    monkeypatch.setattr(library, "library_files", lambda: files)
    monkeypatch.setattr("pydoc_data.topics.topics", {"text": "Some words of prose. " * 500})
    topics, prose, source_code = text_sources(
        open_model(tiny_folder), HealingText([], None, 2**62, 0, seed=0, length=64)
    )
    assert len(source_code.fit) == len(topics.fit) + len(prose.fit)
