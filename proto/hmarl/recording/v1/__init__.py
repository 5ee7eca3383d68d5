"""Version 1 of what is recorded, a black box's messages: generated modules."""
