"""Families: one file each assembles the stack, names its presets and maps Hugging Face names."""
