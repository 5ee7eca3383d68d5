"""Agents that are improved one after the other."""
