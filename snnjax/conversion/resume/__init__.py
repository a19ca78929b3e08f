"""Fits that outlive the process: ``folder.py`` stores them, ``digest.py`` compares."""
