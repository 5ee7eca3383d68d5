"""Environments of single games: in this process, or in worker processes of this or another interpreter."""
