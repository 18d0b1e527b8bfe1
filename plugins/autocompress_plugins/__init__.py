"""The components that come with autocompress; they register through the same entry points as anybody's."""
