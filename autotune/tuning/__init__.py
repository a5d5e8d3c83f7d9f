"""Search on a live engine, warm-started by the model: suggest, start, wait, load, judge, stop; and what that taught."""
