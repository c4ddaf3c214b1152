"""The OpenAI API on the client's side: parses, checks and edits request bodies.

In the order in which a request meets them:

- `request`: from a body to a model and the body for its engine; `passthrough`: the same for unknown
  paths.
- `body_parser`: parses a body; `schemas`: the typed fields; `validation`: their limits.
- `field_policy`: which fields reach an engine, by the table `engine_fields`; `json_edit`: edits
  bodies in place.
- `model_names`, `served_name`: names for clients, and names of engines.
- `prefix_key`: the prompt as routing sees it; `request_timeout`: the client's deadline.
"""
