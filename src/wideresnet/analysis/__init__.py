"""What the blocks of a trained network contribute: errors without them, norms, gradients, similarity."""

from wideresnet.analysis.weights import analyze

__all__ = ["analyze"]
