"""What is collected: rollouts, and past ones that are replayed."""
