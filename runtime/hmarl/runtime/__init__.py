"""The hmarl runtime: loads a bundle and serves one agent's policy. Public modules: ``bundle`` and ``session``."""
