"""Many runs as one: algorithms, tasks, seeds and settings, planned, trained, kept and compared."""
