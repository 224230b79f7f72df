"""Several seeds of one recipe: one process each, several at the same time if a single one leaves the device idle."""

from wideresnet.experiments.seeds import fit_seeds

__all__ = ["fit_seeds"]
