"""From a trained network to an SNN: `snnjax.convert` and all that it is made of.

``fits.py`` is the mathematics; ``calibrate.py`` and ``weights.py`` apply it to what
``view.py`` shows of a site, and ``recipes.py`` chains them. ``convert.py`` plans,
``sweep.py`` takes ``chunks.py`` of the images from site to site, whose spikes are
``streams.py``, and ``arrival.py`` shows each site to its calibrators; ``waiting.py``
is for what does not fit in memory, ``checks.py`` refuses, ``resume.py`` goes on after a
kill if ``digest.py`` says that it is the same conversion.
"""
