"""What the user names: data, models with their weights, functions."""
