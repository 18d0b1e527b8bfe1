"""What a file gets right: evaluation, intervals, paired tests, which examples and classes changed."""
