"""`wrn bench`: how fast this package trains and runs a network, beside other implementations in the same process."""
