"""The machine at hand: CPUs, memory, device, description. Imports work on every platform."""
