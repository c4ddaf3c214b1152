"""What the command line says of a cluster: ``status``, ``check`` and ``support-bundle``. Gathering is thin; judging is pure."""
