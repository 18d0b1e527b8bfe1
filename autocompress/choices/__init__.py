"""What a search may decide, and what it tries before it has learned anything."""
