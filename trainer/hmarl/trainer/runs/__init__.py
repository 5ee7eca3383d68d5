"""A run: its configuration, loop, directory and presets."""
