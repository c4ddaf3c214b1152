"""The index on the cluster, as the indexers' pods report it, and as the gateways follow it."""

from collections.abc import Iterable
from dataclasses import dataclass

from e2e.kube.cluster_access.kubectl import eventually
from e2e.kube.workloads.helm_release import HelmRelease
from fairlead.kube.resources import is_deleting, is_ready
from fairlead_testing.prometheus import parse_scrape

_PAGE = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:{port}/metrics', timeout=10).read().decode())"
_PORTS = {"indexer": 8080, "gateway": 8081}


@dataclass(frozen=True, slots=True)
class IndexStatus:
    """The index of one model, by its full name."""

    release: HelmRelease
    model: str

    def reports(self, component: str, name: str, **labels: str) -> list[float]:
        """Returns a metric of this model, a number per pod of the component."""
        return self._values(self._pages(component), name, **labels)

    def wait_until_followed(self, instances: int) -> None:
        """Wait until one indexer reads all of them and has blocks of each answer, and every gateway
        follows what it writes."""

        def read() -> bool:
            return (
                sum(self.reports("indexer", "fairlead_indexer_leads")) == 1.0
                and self.reports("indexer", "fairlead_indexer_connected") == [float(instances)]
                and self.reports("indexer", "fairlead_indexer_incomplete") == [0.0]
                and sum(self.reports("indexer", "fairlead_indexer_blocks")) > 0.0
            )

        def known() -> bool:
            pages = self._pages("gateway")
            states = self._values(pages, "fairlead_gateway_index_instances", state="index")
            return bool(pages) and states == [float(instances)] * len(pages)

        eventually("an indexer reads the model's engines", read, describe=lambda: self._page_texts("indexer"))
        eventually("the gateways follow the index", known, describe=lambda: self._page_texts("gateway"))

    def _values(self, pages: Iterable[str], name: str, **labels: str) -> list[float]:
        """Returns a metric of this model, a number per page that has it."""
        wanted = {"model": self.model, **labels}.items()
        found = []
        for page in pages:
            series = parse_scrape(page).items()
            found += [value for (metric, has), value in series if metric == name and wanted <= set(has)]
        return found

    def _pages(self, component: str) -> list[str]:
        """Returns the metrics of every pod that serves. Another test may end one meanwhile."""
        pages = []
        for name in self._serving_pods(component):
            try:
                pages.append(self.release.here.python(name, _PAGE.format(port=_PORTS[component])))
            except AssertionError:
                if name in self._serving_pods(component):
                    raise
        return pages

    def _serving_pods(self, component: str) -> list[str]:
        pods = self.release.pods(component).values()
        return [pod["metadata"]["name"] for pod in pods if is_ready(pod) and not is_deleting(pod)]

    def _page_texts(self, component: str) -> str:
        lines = "\n".join(self._pages(component)).splitlines()
        return "\n".join(line for line in lines if self.model in line and "_index" in line)
