"""Local mode: the whole of Fairlead as child processes of one command, without Kubernetes.

plan (manifests → processes, pure) → supervisor (keeps the processes, writes the fleet file) → view (shows it). Underneath:
child and keeper (one process, kept running), guard (nothing survives us), rundir (where things lie while it runs).
"""
