"""Kernels for CPUs, in C, compiled once on the machine they run on, and one for GPUs, in Triton; used from PyTorch."""
