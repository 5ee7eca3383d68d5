"""What several runs compute as one: threads that meet, and gradient steps that they take together."""
