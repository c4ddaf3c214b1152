"""The command line: `fairlead` and `kubectl fairlead`.

Reading order: `app` (table of verbs) → the `command` of a verb → the package of the
subject: `local` (a stack on this machine), `cluster` (checks, status, bundle), `chat`, `explain`,
`index`, `rollouts`, `scaling`, `replay`, `simulation`, `management` (client of the gateway's
management API). `keys`, `tenants` and `usage` are about tenants.
"""
