"""What an author of an environment needs: random streams, checked arguments, checked actions."""
