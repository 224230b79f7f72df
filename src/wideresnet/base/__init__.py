"""What everything else is built on: errors, formatting, progress, seeds, paths, child processes, metrics.

Imports no torch, and numpy only in `metrics`.
"""
