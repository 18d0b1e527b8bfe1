"""The packaged configuration; a package so that Hydra finds it as `pkg://autocompress.conf`."""
