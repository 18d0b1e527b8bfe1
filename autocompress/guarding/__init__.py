"""Nothing lost, nothing let in: files that are whole, folders that are held, calls that end, secrets that stay."""
