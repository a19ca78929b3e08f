"""Short programs; each runs as ``python -m examples.NAME`` from the root."""
