"""What engines say of their KV caches: payloads to events (``decode``), frames to an unbroken sequence (``sequence``)."""
