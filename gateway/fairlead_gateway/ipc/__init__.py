"""The messages between the supervisor and its workers, and their channel.

In reading order: `channel` (messages over a socket pair), `messages` (all messages),
`batch_sender` (items sent together) and `decision_json` (decisions as JSON).
"""
