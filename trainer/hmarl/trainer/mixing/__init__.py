"""MAVEN's latent and mixer."""
