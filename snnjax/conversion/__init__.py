"""From a trained network to an SNN: `snnjax.convert` and its recipes.

``recipes.py`` chains calibrators, ``convert.py`` checks and begins, ``engine`` carries
all images from site to site.
"""
