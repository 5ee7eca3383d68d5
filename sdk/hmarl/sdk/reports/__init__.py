"""What is shown of an evaluation: an HTML report, plots and films."""
