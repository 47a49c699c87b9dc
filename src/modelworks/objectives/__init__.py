"""One file for each thing to learn."""
