"""Whether a plugin fits: its version of the interface, its hooks, and what to say when it does not."""
