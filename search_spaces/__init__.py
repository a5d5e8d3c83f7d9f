"""Engine knobs as data, per engine and version."""
