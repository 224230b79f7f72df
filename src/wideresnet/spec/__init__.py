"""What a run is: the grammar of names, the recipe and its functions, published figures, run folder. Knows no torch."""
