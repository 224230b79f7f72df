"""Kernels for CPUs, written in C and compiled once on the machine they run on, and their use from PyTorch."""
