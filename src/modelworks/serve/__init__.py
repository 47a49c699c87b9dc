"""The HTTP door: OpenAI-compatible API, streaming, limits, metrics, the chat page."""
