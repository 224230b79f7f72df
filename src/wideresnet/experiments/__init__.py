"""Several seeds of one recipe: a process each, several at once where one alone leaves the device idle."""

from wideresnet.experiments.seeds import fit_seeds

__all__ = ["fit_seeds"]
