"""Bash scripts, read as the shell would run them."""
