"""Readers of one kind of source each, from files to a `Dataset`."""
