"""Hugging Face directories: opened, checked and saved; presets by name."""
