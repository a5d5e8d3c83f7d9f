"""Verdicts on plans that people arrive with: do they fit, what will they do, what bounds them, what would it take."""
