"""Axis labels: which axis of a value is the batch, the image grid, or the token axis, and how each op moves them."""
