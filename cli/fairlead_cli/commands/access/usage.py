"""``fairlead usage`` and ``fairlead cost``: reports from the ledgers of gateways."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from fairlead_cli.output import OutputFlag
from fairlead_cli.target import ContextFlag, InstallationFlag, KubeconfigFlag

if TYPE_CHECKING:
    from fairlead_cli.usage.options import ReportOptions, TextFormat

_ByFlag = Annotated[str, Parameter(help="What to group by, with commas: tenant, key, model, adapter, day.")]


@dataclass(frozen=True, slots=True)
class ReportFlags:
    """The flags of both reports."""

    first: Annotated[str | None, Parameter(name="--from", help="The first day, in UTC, such as 2026-11-01.")] = None
    last: Annotated[str | None, Parameter(name="--to", help="The last day, included. Default: today.")] = None
    span: Annotated[str | None, Parameter(name="--last", help="So many days up to the last one. Default: 7d.")] = None
    dir: Annotated[
        list[Path] | None,
        Parameter(help="A ledger's folder on this machine, instead of gateways; can be given again."),
    ] = None
    manage: Annotated[
        str | None, Parameter(help="Management address of a gateway. Default: the newest stack on this machine.")
    ] = None
    context: ContextFlag = None
    kubeconfig: KubeconfigFlag = None
    install_namespace: InstallationFlag = None
    csv: Annotated[bool, Parameter(negative=(), help="Print CSV instead of a table.")] = False
    focus: Annotated[bool, Parameter(negative=(), help="Print CSV with the columns of FOCUS, for cost tools.")] = False
    output: OutputFlag = "table"

    def options(self, by: str) -> "ReportOptions":
        """Returns the options of a report."""
        from fairlead_cli.target import ClusterOptions
        from fairlead_cli.usage.options import ReportOptions

        cluster = ClusterOptions(self.kubeconfig, self.context, install_namespace=self.install_namespace)
        text: TextFormat = "focus" if self.focus else "csv" if self.csv else "table"
        return ReportOptions(
            by, self.first, self.last, self.span, self.dir or [], self.manage, cluster, self.output, text
        )


_Flags = Annotated[ReportFlags, Parameter(name="*")]
_DEFAULTS = ReportFlags()


def usage(*, by: _ByFlag = "tenant", flags: _Flags = _DEFAULTS) -> int:
    """Show what tenants used: requests, tokens, and their cost by the prices of the models.

    Gateways that share a ledger count once. Documents and CSV have exact amounts.

    Exits 0 when done, 2 on wrong usage or without a permission, 3 when no gateway can be reached.
    """
    from fairlead.runtime.clock import SystemClock
    from fairlead_cli.usage.command import run_usage

    return run_usage(flags.options(by), SystemClock().wall())


def cost(*, by: _ByFlag = "tenant", flags: _Flags = _DEFAULTS) -> int:
    """Show what replicas cost, divided among tenants by engine time. The sum is the bill.

    The price of a replica is costPerHour of its AcceleratorClass times its devices. Unused replicas
    are shown by state: idle, starting, sleeping. Documents and CSV have exact amounts.

    Exits 0 when done, 2 on wrong usage or without a permission, 3 when no gateway can be reached.
    """
    from fairlead.runtime.clock import SystemClock
    from fairlead_cli.usage.command import run_cost

    return run_cost(flags.options(by), SystemClock().wall())
