"""Physics of LLM inference: what a step costs and what it needs in memory.

Pure functions over numpy arrays; datasheet facts come from `cost_models.specs.hardware`, fitted
coefficients from `cost_models.calibration`. Nothing here decides anything.
"""
