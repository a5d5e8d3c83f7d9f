"""Many problems at once: scenario files, workers that solve them, a journal that loses nothing, a table of results."""
