"""The command `wrn`: one file per verb."""
