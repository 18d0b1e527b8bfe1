"""What a person sees while a search runs."""
