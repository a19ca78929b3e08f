"""What carries a recipe out, site by site.

``sweep.py`` takes all images from site to site (``state.py``) by compiled pieces of the
network (``segments.py``, ``micro_batches.py``); ``site_view.py`` shows each site to its
calibrators; ``judging.py`` compares what several recipes gave.
"""
