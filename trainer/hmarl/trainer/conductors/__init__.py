"""Conductors above the agents."""
