"""Arithmetic of our own for CPUs: C code that is compiled once on the machine it runs on, and its use from PyTorch."""
