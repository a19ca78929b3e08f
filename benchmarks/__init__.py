"""Benchmarks: each file answers one question, with the peers timed in the same run."""
