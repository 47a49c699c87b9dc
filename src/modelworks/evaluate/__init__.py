"""Suites, intervals and trivial baselines: what a model is worth."""
