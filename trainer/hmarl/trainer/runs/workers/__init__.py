"""Workers that collect a share of a run's environments each: in this process, or as actors of a Ray cluster."""
