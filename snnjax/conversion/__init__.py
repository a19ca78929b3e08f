"""From a trained network to an SNN: `snnjax.convert` and its recipes.

``convert.py`` checks and begins; ``recipes.py`` chains calibrators; ``search.py``
chooses what no one has chosen; ``engine`` carries all images from site to site.
"""
