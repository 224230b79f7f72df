"""How a network is run: Winograd training, optimized inference, 8 bits, evaluation of a whole set."""
