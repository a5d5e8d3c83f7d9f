"""Step times and their uncertainty of one deployment."""
