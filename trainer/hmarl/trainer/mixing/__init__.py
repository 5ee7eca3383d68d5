"""Mixed utilities, and MAVEN's latent above them."""
