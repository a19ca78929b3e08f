"""What a spiking network does and costs.

``metrics.py``: accuracy, rates, errors, operations; ``costs.py``: energy;
``neurobench.py``: the same under NeuroBench's names.
"""
