"""Several processes that train one network: the world, gradients, synchronized normalization, the launcher."""
