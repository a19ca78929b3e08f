"""What carries a recipe out, site by site.

``sweep.py`` takes all images (``state.py``) from site to site by compiled pieces of the
network (``segments.py``); ``site_view.py`` shows each site to its calibrators;
``effects.py`` weighs errors by the outputs; ``judging.py`` compares what several
recipes gave.
"""
