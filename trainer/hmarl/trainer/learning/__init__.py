"""Estimates and losses that algorithms share: returns, critic, trust regions, imitation, instructions."""
