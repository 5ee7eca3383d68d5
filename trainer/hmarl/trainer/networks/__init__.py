"""Networks as pure functions of flat parameters, distributions over actions, policies of groups, and their settings."""
