"""The OpenAI API on the client's side: parses, checks and edits request bodies.

In the order in which a request meets them:

- `request`: from a body to a model, its prompt and session as routing sees them, and the body for
  its engine.
- `body_parser`: from a body to a `ModelRequest`, by the fields of its dialect and `validation`,
  their limits.
- `response_ids`: the ids of stored responses.
- `field_policy`: which fields reach an engine; `json_edit`: edits bodies in place.
- `model_names`: names for clients, and names of engines.
"""
