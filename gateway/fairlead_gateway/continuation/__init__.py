"""Streams that another instance continues, when theirs breaks or drains.

- `continuation`: the door: keeps what a stream needs, and continues it elsewhere.
- `continued_stream`: what the door hands out; `stream_tokens`, `stream_replay`, `stream_blocks` and
  `stream_text` are its kinds, by dialect and engine.
- `sent_tokens`, `sent_blocks`: what is kept of a stream while it is relayed.
- `stream_moves`: whether a stream leaves an instance that drains.
"""
