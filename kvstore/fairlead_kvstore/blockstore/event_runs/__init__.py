"""The blocks of one event, from the event to the table.

- `pending_run`: the blocks of one event as a run that is added to a table
- `orphan_blocks`: runs that wait for their parent
"""
