"""tinysleb: shorten Llama-family models by leaving out the blocks they can do without."""

from importlib.metadata import version

__version__ = version("tinysleb")
