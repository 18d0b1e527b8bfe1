"""From a policy to the file, and to the module that computes the same."""
