"""One child process of a stack: `managed_process` (restarts, readiness) → `child_process` →
`child_exec` (runs in the child).

`reaper` and `reaper_process` end all children when the supervisor ends. `embedded_redis` is the
Redis of local mode.
"""
