"""Targets: what renders a launch, one module each."""
