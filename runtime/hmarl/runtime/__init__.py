"""The hmarl runtime: loads a bundle and serves one agent's policy. Public modules: ``bundle`` and ``session``."""

__version__ = "0.2.0"  # of the whole distribution; its metadata is made of this
