"""Which expert replicas exist and on which GPU they lie."""
