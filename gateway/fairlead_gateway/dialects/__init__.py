"""The dialects that clients speak, as one table: forms of requests, streams, errors and counts.

In reading order:

- `dialect`, `body_form`: what an entry says.
- `chat`, `completions`, `embeddings`, `messages`, `responses`, `passed_on`: the entries.
- `table`: the entries by path.
- `error_shape`, `event_grammar`: errors and streams, by dialect.
- `schemas`: the fields of bodies; `volatile_text`: text that changes with every request.
- `chat_forms`: the chats that engines make of messages and responses.
"""
