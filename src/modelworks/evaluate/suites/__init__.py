"""One file for each evaluation, versioned, with per-item results."""
