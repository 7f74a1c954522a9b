"""Which files of a model's folder belong to the model besides its weights: an allow-list of names.

Whatever else lies there is the user's own. It is neither copied into an output nor deleted with one. The list
is here, and not with the checkpoints, because what may be replaced depends on it as well.
"""

from __future__ import annotations

import stat
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path

from tinysleb.errors import TinyslebError

READ_NAMES = frozenset(
    """
    README.md added_tokens.json chat_template.jinja chat_template.json generation_config.json merges.txt
    preprocessor_config.json processor_config.json qwen.tiktoken special_tokens_map.json tekken.json
    tokenizer.json tokenizer.model tokenizer.model.v3 tokenizer.tiktoken tokenizer_config.json vocab.bpe
    vocab.json vocab.txt
    """.split()  # noqa: SIM905
)
"""Tokenizer, vocabulary, chat template, how to generate, model card; programs read these."""
LEGAL_NAMES = ("LICENSE*", "LICENCE*", "NOTICE*", "Notice*", "COPYING*", "USE_POLICY*", "ACCEPTABLE_USE*")
LEGAL_SUFFIXES = ("", ".txt", ".md")
TEMPLATE_FOLDER = "additional_chat_templates"
WEIGHT_NAMES = ("config.json", "plan.json", "model.safetensors.index.json", "*.safetensors")
"""What is written anew for every output."""
LARGEST_FILE_BYTES = 256 * 1024 * 1024
"""Tokenizers of a quarter of a million tokens take a tenth of this."""


def model_files(folder: Path) -> list[Path]:
    """The files of a model's folder that belong to the model, besides its config, weights and plan.

    They lie in the folder, or in the blobs of the Hugging Face cache that the folder is part of.
    """
    return [path for path in _named_files(folder) if _obstacle(path, folder) is None]


def skipped_files(folder: Path) -> list[str]:
    """The files with a name that `model_files` knows which it leaves out, each with the reason."""
    reasons = {path: _obstacle(path, folder) for path in _named_files(folder)}
    return [f"{path} {reason}" for path, reason in reasons.items() if reason is not None]


def refuse_special_files(folder: Path) -> None:
    """Raise TinyslebError if a file of the model is a pipe or a device, or leads to one: reading it might
    never end."""
    for path in sorted(folder.iterdir()):
        if _is_named(path.name) or _is_weights(path.name):
            with suppress(OSError):
                mode = path.stat().st_mode
                if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                    raise TinyslebError(f"{path} is not a regular file", "put a copy of the file there")


def check_read_files(folder: Path) -> None:
    """Raise TinyslebError if a file that a program would read by its name is not this model's own."""
    read = [path for path in _named_files(folder) if not _is_legal(path.name)]
    for path in [*read, folder / "config.json"]:
        reason = _obstacle(path, folder)
        if reason is not None:
            raise TinyslebError(f"{path} {reason}", "put a copy into the folder, or delete the link")


def foreign_file(folder: Path) -> Path | None:
    """The first entry of a folder that is not a file of a model; None if all are."""
    for entry in sorted(folder.iterdir()):
        if entry.name == TEMPLATE_FOLDER and entry.is_dir() and not entry.is_symlink():
            strange = [path for path in entry.iterdir() if path.suffix != ".jinja" or not _is_plain(path)]
            if strange:
                return strange[0]
        elif not (_is_named(entry.name) or _is_weights(entry.name)) or not _is_plain(entry):
            return entry
    return None


def _named_files(folder: Path) -> list[Path]:
    named = [path for path in folder.iterdir() if _is_named(path.name) and not path.is_dir()]
    return sorted([*named, *(folder / TEMPLATE_FOLDER).glob("*.jinja")])


def _is_named(name: str) -> bool:
    return name in READ_NAMES or _is_legal(name)


def _is_legal(name: str) -> bool:
    return Path(name).suffix in LEGAL_SUFFIXES and any(fnmatch(name, pattern) for pattern in LEGAL_NAMES)


def _is_weights(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in WEIGHT_NAMES)


def _is_plain(path: Path) -> bool:
    return stat.S_ISREG(path.lstat().st_mode)


def _obstacle(path: Path, folder: Path) -> str | None:
    """Why a file is not taken; None if it is."""
    try:
        target = path.resolve(strict=True)
        status = target.stat()
    except (OSError, RuntimeError):  # a dangling link, or one that leads to itself
        return "is a link to a file that is not there"
    if not _belongs(target, folder.resolve()):
        return f"is a link to a file that is not the model's ({target})"
    if not stat.S_ISREG(status.st_mode):
        return "is not a regular file"
    if status.st_size > LARGEST_FILE_BYTES:
        return f"has {status.st_size} bytes, more than the {LARGEST_FILE_BYTES} that are taken"
    return None


def _belongs(target: Path, folder: Path) -> bool:
    """Whether the file that a name stands for is the model's: in the folder, under a name that is known, or
    among the blobs of the same repository in a Hugging Face cache."""
    if target.parent == folder:
        return _is_named(target.name) or _is_weights(target.name)
    if target.parent == folder / TEMPLATE_FOLDER:
        return target.suffix == ".jinja"
    repository = folder.parent.parent
    in_cache = folder.parent.name == "snapshots" and repository.name.startswith("models--")
    return in_cache and target.parent == repository / "blobs"
