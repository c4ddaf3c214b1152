"""The messages between the supervisor and its workers, and their channel.

In reading order: `channel` (messages over a socket pair), `messages` (all messages),
`decision_json` (decisions as JSON) and `child_process` (processes that answer queries one by one).
"""
