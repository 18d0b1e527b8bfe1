"""Files on a device: the process there, its timing protocol, memory, energy, lease."""
