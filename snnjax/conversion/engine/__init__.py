"""The sweep that carries a recipe out, site by site.

``sweep.py`` carries ``micro_batches.py`` of the images from site to site by the
compiled ``segments.py`` of the network; ``site_view.py`` shows each site to its
calibrators.
"""
