"""From a function to a network: ``fn(params, x)`` becomes equations with sites.

To follow one ReLU from a jaxpr to its site, read in this order: ``capture.py`` lists
the steps; ``trace.py`` calls fn, ``jaxprs.py`` makes equations, ``recognize.py``,
``encoders.py`` and ``operators.py`` make sites, ``examples.py`` makes the network that
of one example, ``annotate.py`` names the sites, ``check.py`` refuses what is left.
``facts.py`` holds what the steps ask of a program, and ``primitives.py`` what they know
of primitives. The result is the data of `snnjax.network`, which has the public names.
"""
