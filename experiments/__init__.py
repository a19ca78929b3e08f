"""Experiments with snnjax, run from the clone: ``python -m experiments.train_ann``."""
