"""What compressing gains on a device, found out on small networks."""
