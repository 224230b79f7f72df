"""Pages, figures and statistics from the records of runs. Imports no torch."""
