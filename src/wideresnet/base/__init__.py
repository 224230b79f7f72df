"""What everything else stands on: errors, formatting, the console, seeds, paths. Knows no torch."""
