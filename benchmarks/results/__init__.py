"""Models that are trained on real text, and what they can do; `make results`."""
