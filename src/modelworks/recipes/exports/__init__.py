"""Formats to hand a model over in: one file each, written and then run to see that it is the same model."""
