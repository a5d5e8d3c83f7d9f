"""Load generators: public tools, by their own command lines and result files."""
