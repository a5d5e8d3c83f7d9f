"""Predicted against measured: cases, statistics, tables, plots."""
