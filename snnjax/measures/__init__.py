"""What a spiking network does and costs.

``metrics.py``: accuracy, rates, errors; ``operations.py``: what a spike sets off;
``costs.py``: energy; ``neurobench.py``: the same under NeuroBench's names.
"""
