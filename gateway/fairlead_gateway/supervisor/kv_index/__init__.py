"""The index in a gateway's helper: where it comes from, how it is linked to prompts, what workers are told, and how good it is."""
