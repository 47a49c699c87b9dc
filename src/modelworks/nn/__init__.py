"""Parts of a transformer: attention, feed-forward, norm, position, stems, stack, heads, cache."""
