"""The messages between the supervisor and its workers, and their channel.

- `channel`: messages over a socket pair.
- `messages`: those of the processes, and the unions of all; a feature has its own in its folder.
- `decision_json`: decisions as JSON.
- `child_process`: processes that answer queries one by one.
"""
