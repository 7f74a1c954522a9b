"""Which family a `config.json` is of, and which of its settings nothing here makes use of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tinysleb.checkpoint.architectures import BY_HUGGINGFACE_NAME, Architecture
from tinysleb.checkpoint.config_keys import HARMLESS_KEYS, READ_KEYS
from tinysleb.checkpoint.rotary import SETTINGS as ROTARY_SETTINGS
from tinysleb.errors import TinyslebError, shown

BY_LOWER_NAME = {name.lower(): record for name, record in BY_HUGGINGFACE_NAME.items()}
BY_MODEL_TYPE = {record.model_type: record for record in BY_HUGGINGFACE_NAME.values()}
BY_OTHER_FAMILIES = frozenset(key for record in BY_HUGGINGFACE_NAME.values() for key in record.keys) - {
    "partial_rotary_factor",
    "original_max_position_embeddings",
}
"""Keys that not every family makes use of; the two rotary ones depend on the kind of scaling."""
NULLABLE = ("sliding_window", "head_dim", "num_key_value_heads")
"""Keys for which null means that there is none; other keys have their default then."""


def family_of(values: Mapping[str, Any], where: str) -> Architecture:
    """The family that `architectures` names or, without it, `model_type`.

    Capitals do not matter: `LLaMAForCausalLM` is an old spelling. Raises TinyslebError for a family that is
    not known, and if the two name different ones: transformers goes by the one, converters by the other.
    """
    names, model_type = values.get("architectures"), values.get("model_type")
    name = names[0] if isinstance(names, list) and names else None
    by_name, by_type = BY_LOWER_NAME.get(str(name).lower()), BY_MODEL_TYPE.get(str(model_type))
    if by_name is None and (name is not None or by_type is None):
        raise unknown_family(where, "architectures", names, BY_HUGGINGFACE_NAME)
    if by_name is not None and by_type is not None and by_name is not by_type:
        raise TinyslebError(
            f"{where}: `model_type` is {shown(model_type)}, and `architectures` is {shown(names)}: these are "
            "two families",
            "correct the one that is wrong",
        )
    found = by_name or by_type
    assert found is not None
    return found


def unknown_family(where: str, key: str, value: Any, known: Mapping[str, Any]) -> TinyslebError:
    """The error for a family that is not known."""
    return TinyslebError(
        f"{where}: `{key}` is {shown(value)}, a model family that tinysleb does not know",
        f"known families: {', '.join(known)}",
    )


def stated_settings(values: Mapping[str, Any], family: Architecture) -> dict[str, Any]:
    """The settings of a `config.json` without those that only other families make use of, and without nulls
    that stand for a default."""
    others = BY_OTHER_FAMILIES.difference(family.keys)
    return {
        key: value
        for key, value in values.items()
        if key not in others and (value is not None or key in NULLABLE)
    }


def unused_settings(values: Mapping[str, Any], family: Architecture) -> list[str]:
    """Settings that say something, and that neither this program nor transformers' class of the family uses,
    as `key` value."""
    known = READ_KEYS | HARMLESS_KEYS | set(family.keys)
    unused = {key: value for key, value in values.items() if key not in known and not key.startswith("_")}
    for outer in ("rope_scaling", "rope_parameters"):
        inner = values.get(outer)
        if isinstance(inner, dict):
            unused |= {f"{outer}: {key}": inner[key] for key in inner if key not in ROTARY_SETTINGS}
    return [f"`{key}` {shown(value)}" for key, value in unused.items() if not _says_nothing(value)]


def _says_nothing(value: Any) -> bool:
    return value in (None, False, 0, "", [], {})
