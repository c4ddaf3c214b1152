"""The gateway: OpenAI-compatible, routes by prefix and load."""
