"""`wrn bench`: how fast this package trains and runs a network, compared with other implementations."""
