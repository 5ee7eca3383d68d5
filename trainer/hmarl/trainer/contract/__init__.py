"""What an algorithm owes training, evaluation and export."""
