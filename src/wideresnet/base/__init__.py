"""What everything else is built on: errors, formatting, the console, seeds, paths, child processes, metrics. Imports no
torch, and numpy only in `metrics`."""
