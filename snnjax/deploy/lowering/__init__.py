"""From a function and its SNN to layers: populations and linear maps.

``layers.py`` takes the captured equations one by one, ``values.py`` has the nodes.
``rules.py`` has a rule per primitive, ``windows.py`` convolutions and pools,
``sums.py`` the scales and biases on their way into weights, ``products.py`` products of
maps and ``own_maps.py`` one map for each connection. ``function.py`` is the way
back.
"""
