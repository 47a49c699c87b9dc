"""Attacks: one file each perturbs a text or an embedding inside a stated ball."""
