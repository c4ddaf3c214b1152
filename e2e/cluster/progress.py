"""Progress messages of the cluster's commands, and their error."""

from scripts.release.progress import print_progress, progress_step
from scripts.release.release_run import ReleaseError

__all__ = ["ClusterError", "print_progress", "progress_step"]


class ClusterError(ReleaseError):
    """Raised for problems with a cluster that the user can mend; the message says how."""
