"""The preStop hook for images without Python: with a shell and curl.

It is for instances of one pod: it knows no leader.
"""

from dataclasses import dataclass
from typing import Any, Final

from fairlead.engines.containers.prestop_drain import IDLE_SECONDS, PreStopDrain

SHELL_DRAIN_SCRIPT: Final = """\
url=$1 end=$(($(date +%s) + $2)) quiet=$3 idle_since=
shift 3
while [ "$(date +%s)" -lt "$end" ]; do
  page=$(curl -sf --noproxy '*' -m 5 "$url"); result=$?
  [ "$result" -ne 7 ] || break
  busy=$result
  for name; do
    case $(printf '%s\\n' "$page" | sed -n "s/^$name[^ ]* //p") in
      '' | 0 | 0.0) ;;
      *) busy=1 ;;
    esac
  done
  now=$(date +%s)
  if [ "$busy" -ne 0 ]; then idle_since=; else idle_since=${idle_since:-$now}; fi
  if [ -n "$idle_since" ] && [ $((now - idle_since)) -ge "$quiet" ]; then break; fi
  sleep 0.5
done
"""
"""Arguments: URL, maximum seconds, idle seconds, gauges. Result 7 of curl: nothing listens."""


@dataclass(frozen=True, slots=True)
class ShellDrain(PreStopDrain):
    """A hook that polls like that of `prestop_drain`. It needs a `url`."""

    def prestop_hook(self, max_seconds: float) -> dict[str, Any]:
        """Returns the container's preStop hook.

        max_seconds: maximum time of the hook.
        """
        assert self.url is not None
        arguments = [self.url, f"{max_seconds:g}", str(IDLE_SECONDS), *self.gauges]
        return {"exec": {"command": ["sh", "-c", SHELL_DRAIN_SCRIPT, "drain", *arguments]}}
