"""The study on disk or in a database, shared, resumed, and never wrong."""
