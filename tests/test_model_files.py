"""What belongs to a model: nothing private gets into an output, nothing else is deleted with one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from tinysleb.errors import TinyslebError
from tinysleb.formats import model_files as names
from tinysleb.formats.files import read_json_object, refuse_existing, replaced_folder
from tinysleb.formats.model_files import foreign_file, model_files, skipped_files

Run = Callable[..., Result]
PRIVATE = ["credentials.json", "diary.md", "bank-statement.txt", "notes.jinja", "key.model", "LICENSE.pem"]


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A model among a user's own files."""
    copy = tmp_path / "m"
    shutil.copytree(tiny_folder, copy)
    for name in ("LICENSE", "LICENSE.txt", "NOTICE", "USE_POLICY.md", "README.md", *PRIVATE):
        (copy / name).write_text(f"this is {name}")
    (copy / "additional_chat_templates").mkdir()
    (copy / "additional_chat_templates" / "rag.jinja").write_text("{{ rag }}")
    (copy / "additional_chat_templates" / "todo.txt").write_text("private")
    (tmp_path / "secret").write_text("SECRET")
    return copy


def test_a_models_own_files_are_copied_and_no_others(folder: Path, run: Run) -> None:
    assert run("export", folder, "--hf", "out").exit_code == 0
    copied = {str(path.relative_to("out")) for path in Path("out").rglob("*") if path.is_file()}
    own = {"LICENSE", "LICENSE.txt", "NOTICE", "USE_POLICY.md", "README.md", "tokenizer.json"}
    assert copied >= own | {"config.json", "model.safetensors", "additional_chat_templates/rag.jinja"}
    assert not copied & {*PRIVATE, "additional_chat_templates/todo.txt"}
    assert foreign_file(Path("out")) is None


@pytest.mark.parametrize("name", ["LICENSE", "README.md", "generation_config.json"])
@pytest.mark.parametrize("target", ["../secret", "/proc/self/environ", "credentials.json", "nowhere", "."])
def test_a_link_to_something_else_is_not_followed(name: str, target: str, folder: Path, run: Run) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(target)
    result = run("export", folder, "--hf", "out")
    assert result.exit_code == 0
    assert not Path("out", name).exists()
    if target != ".":  # a folder is not taken for a file
        assert f"not copied: {folder / name} is a link" in result.stderr
    other = run("export", folder, "--gguf", "out.gguf", "--pre", "smollm")
    if target != "." and name != "LICENSE":  # which the gguf package does not read
        assert other.exit_code == 1
        assert f"{folder / name} is a link" in other.stderr
        assert "SECRET" not in other.output
        assert not Path("out.gguf").exists()


def test_templates_are_not_followed_out_of_the_folder(folder: Path, tmp_path: Path) -> None:
    shutil.rmtree(folder / "additional_chat_templates")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.jinja").write_text("SECRET")
    (folder / "additional_chat_templates").symlink_to(tmp_path / "elsewhere")
    assert not any(path.suffix == ".jinja" for path in model_files(folder))
    assert any("x.jinja is a link to a file" in line for line in skipped_files(folder))


def test_neither_pipes_nor_huge_files_are_taken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "NOTICE").unlink()
    os.mkfifo(folder / "NOTICE")
    monkeypatch.setattr(names, "LARGEST_FILE_BYTES", 1000)
    taken = [path.name for path in model_files(folder)]
    assert "NOTICE" not in taken
    assert "tokenizer.json" not in taken
    assert "LICENSE" in taken


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "plan.json", "README.md"])
def test_what_never_ends_is_not_read(name: str, folder: Path, run: Run) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    for model in (folder, folder / "model.safetensors"):
        result = run("inspect", model)
        assert result.exit_code == 1
        assert f"{name} is not a regular file" in result.stderr or "neither a file nor" in result.stderr
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/zero")
    assert "not a regular file" in run("inspect", folder).stderr


def test_json_from_a_device_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinysleb.formats.files.LARGEST_JSON_BYTES", 1000)
    with pytest.raises(TinyslebError, match="/dev/zero is too large for a JSON file"):
        read_json_object(Path("/dev/zero"))


def test_the_cache_of_hugging_face_is_read_through_its_links(tiny_folder: Path, run: Run) -> None:
    """`models--ORG--NAME/snapshots/REVISION/file -> ../../blobs/HASH`, as huggingface_hub lays it out."""
    repository = Path("hub/models--org--name")
    snapshot = repository / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, file in enumerate(sorted(tiny_folder.iterdir())):
        shutil.copyfile(file, repository / "blobs" / str(number))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    assert run("export", snapshot, "--hf", "out").exit_code == 0
    assert Path("out/tokenizer.json").read_bytes() == (tiny_folder / "tokenizer.json").read_bytes()
    assert run("export", snapshot, "--gguf", "out.gguf", "--pre", "smollm").exit_code == 0
    other = Path("hub/models--other--name/blobs")
    other.mkdir(parents=True)
    (other / "9").write_text("another repository's")
    (snapshot / "LICENSE").symlink_to(other.resolve() / "9")
    assert "LICENSE" not in [path.name for path in model_files(snapshot)]


def test_fit_counts_what_is_copied(folder: Path, run: Run) -> None:
    """A film beside the model does not count."""
    Path("p.json").write_text(json.dumps({"blocks": 6, "removed": [3]}))
    assert run("prune", folder, "--plan", "p.json", "-o", "cut").exit_code == 0
    size = sum(path.stat().st_size for path in Path("cut").rglob("*"))
    with (folder / "film.mkv").open("wb") as file:
        file.truncate(10**9)
    words = ("prune", folder, "--plan", "p.json", "-o", "fits", "--fit", size + 20_000)
    assert run(*words).exit_code == 0


def test_only_a_folder_with_nothing_but_a_model_is_replaced(folder: Path, run: Run) -> None:
    for path in ("web", "empty", "mixed", "nested"):
        Path(path).mkdir()
    Path("web/config.json").write_text("{}")
    Path("web/index.html").write_text("<html>")
    Path("empty/config.json").write_text("{}")
    for name in ("mixed", "nested"):
        assert run("export", folder, "--hf", f"{name}-model").exit_code == 0
        Path(name).rmdir()
        Path(f"{name}-model").rename(name)
    assert run("export", folder, "--hf", "mixed", "--force").exit_code == 0
    Path("mixed/thesis.txt").write_text("two years of work")
    Path("nested/photos").mkdir()
    Path("nested/photos/a.jpg").write_text("a photo")
    Path("link").symlink_to("mixed")
    for name, said in {
        "web": "index.html in it is not a model's file", "empty": "holds no model",
        "mixed": "thesis.txt in it is not a model's file", "nested": "photos in it", "link": "is a link",
    }.items():  # fmt: skip
        before = sorted(Path(name).rglob("*"))
        result = run("export", folder, "--hf", name, "--force")
        assert result.exit_code == 1
        assert said in result.stderr
        assert sorted(Path(name).rglob("*")) == before


def test_a_file_that_came_while_the_model_was_written_is_not_deleted(folder: Path, run: Run) -> None:
    assert run("export", folder, "--hf", "out").exit_code == 0
    with pytest.raises(TinyslebError, match=r"thesis\.txt in it"), replaced_folder(Path("out")):
        Path("out/thesis.txt").write_text("two years of work")
    assert Path("out/thesis.txt").read_text() == "two years of work"
    assert not list(Path().glob(".out*"))


@pytest.mark.parametrize(
    "name", ["x" * 300, "x" * 240, "ü" * 110, ".", "..", "a\0b", "x" * 300 + "/y", "\udcff"]
)
def test_a_name_that_cannot_be_written_is_refused_before_the_work(name: str, tmp_path: Path) -> None:
    with pytest.raises(TinyslebError, match=r"name|exists already|holds it"):
        refuse_existing(tmp_path / name, force=False)
    with pytest.raises(TinyslebError):
        refuse_existing(Path(name), force=True)
