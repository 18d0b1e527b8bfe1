"""One trial: a file passes one gate after another."""
