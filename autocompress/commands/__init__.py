"""Verbs with plain arguments, and completion."""
