"""What the exported network is made of: layers, tensors, channel groups, and which operators can compute in integers."""
