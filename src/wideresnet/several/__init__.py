"""Several seeds of one recipe: a process each, several at once where one alone leaves the device idle."""

from wideresnet.several.run import fit_seeds
from wideresnet.several.summary import render

__all__ = ["fit_seeds", "render"]
