"""Public recipes: read into deployments, and held beside our own plans."""
