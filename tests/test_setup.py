"""What `make` installs: versions for every Python, every package of the code, and what stands there now."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from tinysleb.errors import pip_install

ROOT = Path(__file__).parent.parent
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
PINS = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]


def pins(python: str) -> dict[str, str]:
    """The version of each package that is pinned on a Python, which must be one."""
    environment = {"python_version": python, "python_full_version": f"{python}.0"}
    apply = [pin for pin in PINS if pin.marker is None or pin.marker.evaluate(environment)]
    versions = {pin.name: next(iter(pin.specifier)).version for pin in apply}
    assert len(versions) == len(apply)
    return versions


@pytest.mark.parametrize("python", PYTHONS)
def test_every_python_has_a_version_of_every_package(python: str) -> None:
    assert set(pins(python)) == {pin.name for pin in PINS}


@pytest.mark.parametrize("python", PYTHONS)
def test_pinned_versions_run_on_the_python_they_are_pinned_for(python: str) -> None:
    """As far as this environment's own copies of the same versions say so."""
    compared = 0
    for name, version in pins(python).items():
        try:
            installed = distribution(name)
        except PackageNotFoundError:
            continue
        if installed.version.split("+")[0] == version:
            needed = installed.metadata["Requires-Python"]
            assert SpecifierSet(needed).contains(f"{python}.0"), f"{name} {version} needs Python {needed}"
            compared += 1
    assert compared > 5


def test_the_lowest_versions_tested_are_those_promised() -> None:
    dependencies = PROJECT[PROJECT.index("dependencies = [") : PROJECT.index("llamacpp = ")]
    promised = {name: Version(lowest) for name, lowest in re.findall(r'"(\w+)>=([\d.]+)"', dependencies)}
    lines = (ROOT / "tests/lowest.txt").read_text(encoding="utf-8").splitlines()
    tested = dict(line.split("==") for line in lines if "==" in line)
    assert len(promised) == 8
    assert {name: Version(tested[name]) for name in promised} == promised


def test_the_oldest_python_is_the_one_that_is_promised() -> None:
    assert f'requires-python = ">={PYTHONS[0]}"' in PROJECT


def test_every_package_is_installed() -> None:
    """A folder that pyproject.toml does not list is missing from the installed copy."""
    folders = {str(path.parent.relative_to(ROOT)) for path in ROOT.glob("tinysleb/**/__init__.py")}
    listed = re.findall(r'^    "(tinysleb[\w.]*)",$', PROJECT, re.MULTILINE)
    assert set(listed) == {folder.replace("/", ".") for folder in folders} | {"tinysleb.export"}


@pytest.mark.parametrize("extra", ["tokenizers", "llamacpp"])
def test_the_install_line_of_hints_runs(extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is fetched: the packages are here, and no index is asked."""
    monkeypatch.chdir(ROOT)
    command = shlex.split(pip_install(extra))
    assert extra == "llamacpp" or "tokenizers" in command[-1]
    done = subprocess.run([*command, "--dry-run", "--no-index"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "already satisfied" in done.stdout


MAKE_VARIABLES = {"MAKEFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "MFLAGS", "VENV", "PYTHON"}
"""What a `make` that runs these tests hands on to another."""


def dry_run(folder: Path, *words: str) -> str:
    """What `make` would do there."""
    plain = {name: os.environ[name] for name in os.environ.keys() - MAKE_VARIABLES}
    done = subprocess.run(
        ["make", "--dry-run", *words], cwd=folder, env=plain, check=True, capture_output=True, text=True
    )
    return done.stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_an_edit_is_installed_before_it_is_checked(tmp_path: Path) -> None:
    """`make` is asked what it would do, in a copy of the project that is installed already."""
    shutil.copytree(ROOT / "tinysleb", tmp_path / "tinysleb", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "export").mkdir()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name in ("bin/python", ".installed", ".tested-with"):
        (tmp_path / ".venv" / name).touch()

    def steps(*changed: str) -> list[str]:
        done = dry_run(tmp_path, "check", *(f"--what-if={name}" for name in changed))
        return re.findall(r"^\S+/python -m pip|^\S+/pytest", done, re.MULTILINE)

    assert steps() == [".venv/bin/pytest"]
    for changed in ("tinysleb/search/rounds.py", "export", "constraints.txt"):
        assert steps(changed) == [".venv/bin/python -m pip", ".venv/bin/pytest"]


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_a_demo_continues_what_is_saved(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("tinysleb", "export", "models"):
        (tmp_path / name).mkdir()
    assert "--resume" not in dry_run(tmp_path, "demo")
    (tmp_path / "models" / "SmolLM2-135M-Instruct.Q4_0-sleb.gguf.unfinished.json").touch()
    assert re.search(r"tinysleb prune .* --resume$", dry_run(tmp_path, "demo"), re.MULTILINE)


def test_the_sdist_has_what_its_tests_need(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77", reason="it is needed to build")
    copy = tmp_path / "copy"
    kept_out = shutil.ignore_patterns(".*", "__pycache__", "models", "build", "*.egg-info")
    shutil.copytree(ROOT, copy, ignore=kept_out, symlinks=True)
    code = f"from setuptools.build_meta import build_sdist; build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=copy, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        packed = {name.partition("/")[2] for name in tar.getnames()}
    there = {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()}
    needed = {name for name in there if not name.startswith("tinysleb.egg-info")}
    assert needed - packed == set()
