"""What prepare does to documents: one file a step."""
