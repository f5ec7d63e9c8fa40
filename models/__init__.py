"""Models trained on released tables alone: NumPy and SciPy, no Beam."""
