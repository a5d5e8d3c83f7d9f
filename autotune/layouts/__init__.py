"""Which parallel layout: enumerate, cost all rows at once, prune exactly, select with CP-SAT, explain."""
