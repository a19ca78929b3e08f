"""From a function to a network: ``fn(params, x)`` becomes equations with sites.

``capture.py`` traces a function (``jaxprs.py``), recognizes its ReLUs, puts encoders
and operators in their places, names the sites and checks the result. ``facts.py`` holds
what these steps ask of a program, ``primitives.py`` what they know of primitives, and
``axes.py`` follows channels. ``examples.py`` makes the network that of one example;
``mixing.py`` finds where examples would meet.
The result is the data of `snnjax.network`, which has the public names.
"""
