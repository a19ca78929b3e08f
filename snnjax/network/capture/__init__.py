"""From a function to a network: ``fn(params, x)`` becomes equations with sites.

To follow one ReLU from a jaxpr to its site, read the files in the order of the steps
that ``capture.py`` lists. ``facts.py`` holds what the steps ask of a program, and
``primitives.py`` what they know of primitives. The result is the data of
`snnjax.network`, which has the public names.
"""
