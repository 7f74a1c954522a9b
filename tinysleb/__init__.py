"""tinysleb: shorten Llama-family models by leaving out the blocks they can do without."""

from importlib.metadata import version
from pathlib import Path

__version__ = version("tinysleb")

_folder = Path(__file__).parent
if not (_folder / "export").is_dir():
    # In a clone, where `python -m tinysleb` finds this folder first, export/ lies beside it.
    __path__.append(str(_folder.parent))
