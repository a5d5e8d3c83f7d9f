"""How much memory an engine takes by itself, and whether what a command asks for fits into what that leaves: one module each."""
