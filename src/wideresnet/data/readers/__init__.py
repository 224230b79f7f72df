"""Readers, each for one kind of source: from files to a `Dataset`."""
