"""What steers a search: what options do alone, and what policies will cost."""
