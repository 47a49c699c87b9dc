"""Recipes: named stages, artefacts keyed by digest, the runner, the report."""
