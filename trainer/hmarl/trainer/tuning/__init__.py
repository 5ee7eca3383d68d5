"""The search for settings: what is searched, the trials, and the preset that comes of it."""
