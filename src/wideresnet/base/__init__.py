"""What everything else stands on: errors, formatting, progress, seeds, paths. Knows no torch."""
