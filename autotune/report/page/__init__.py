"""report.html: one self-contained page of a run, made from its typed results."""
