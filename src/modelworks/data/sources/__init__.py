"""Where documents come from: one file a scheme (pydoc:, files:)."""
