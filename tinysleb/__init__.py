"""tinysleb: make Llama-family models shorter by removing the blocks they can do without.

The names below are the Python API. Each is imported when it is first used: `import tinysleb` is cheap.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinysleb.checkpoint.open_model import open_model
    from tinysleb.checkpoint.weights import shorten
    from tinysleb.errors import TinyslebError
    from tinysleb.export.writers import write
    from tinysleb.heal.run import heal
    from tinysleb.plan import Plan
    from tinysleb.search.evaluate import evaluate
    from tinysleb.search.run import search
    from tinysleb.text.windows import windows

    __version__: str

__all__ = [
    "Plan",
    "TinyslebError",
    "evaluate",
    "heal",
    "open_model",
    "search",
    "shorten",
    "windows",
    "write",
]

_MODULES = {
    "Plan": "plan",
    "TinyslebError": "errors",
    "evaluate": "search.evaluate",
    "heal": "heal.run",
    "open_model": "checkpoint.open_model",
    "search": "search.run",
    "shorten": "checkpoint.weights",
    "windows": "text.windows",
    "write": "export.writers",
}

_folder = Path(__file__).parent
if not (_folder / "export").is_dir():
    # In a clone, where `python -m tinysleb` finds this folder first, export/ lies beside it.
    __path__.append(str(_folder.parent))

for _package in ("heal", "search"):
    # These packages have the names of functions below: imported now, they do not take the names later.
    import_module(f"tinysleb.{_package}")
    del globals()[_package]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = import_module("importlib.metadata").version("tinysleb")
    elif name in _MODULES:
        value = getattr(import_module(f"tinysleb.{_MODULES[name]}"), name)
    else:
        raise AttributeError(f"module 'tinysleb' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
