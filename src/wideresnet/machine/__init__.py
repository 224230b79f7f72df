"""The machine at hand: device, memory, description."""
