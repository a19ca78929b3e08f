"""From a function and its SNN to layers: populations and the linear maps between them.

``layers.py`` reads the captured equations one by one, and ``values.py`` has the nodes.
``rules.py`` has a rule for each primitive, ``windows.py`` convolutions and pools.
``sums.py`` keeps scales and biases until they are part of the weights. ``products.py``
multiplies maps that follow each other, and ``unshared_maps.py`` makes one map for each
connection. ``function.py`` is the way back.
"""
