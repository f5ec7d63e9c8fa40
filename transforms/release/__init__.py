"""The privacy boundary: exact sums in, noisy tables out."""
