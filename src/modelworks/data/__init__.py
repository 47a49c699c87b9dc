"""Raw data to batches: sources, cleaning, tokenizer, chat templates, packing, loading, retrieval."""
