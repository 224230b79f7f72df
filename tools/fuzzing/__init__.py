"""What `tools/fuzz.py` feeds to which reader."""
