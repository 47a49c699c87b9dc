"""Adapters: one file a kind (LoRA, DoRA, prefix ...), acting on a built model from outside, in PEFT's format."""
