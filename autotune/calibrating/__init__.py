"""Measured timings in, a new calibration document out."""
