"""Pages and pictures from the records of runs. Knows no torch."""
