"""The messages between the supervisor and its workers, and their channel.

- `channel`: messages over a socket pair.
- `decision_json`: decisions as JSON.
- `child_process`: processes that answer queries one by one.
"""
