"""Closed-loop evaluation: teams of deployed policies, episodes with fixed seeds, and the figures of what came out."""
