"""Feudal hierarchies of message-passing policies."""
