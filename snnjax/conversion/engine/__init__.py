"""What carries a recipe out, site by site.

``sweep.py`` takes all images (``calibration.py``) from site to site by compiled pieces
of the network (``segments.py``). ``site_view.py`` shows each site to its calibrators.
``ann.py`` computes the ANN once, and the effect of an error on its outputs, which
``outputs.py`` compares.
"""
