"""Reference pages from the chart and the code: Helm values, RBAC, ports."""

import re
from collections.abc import Iterator
from pathlib import Path

from fairlead.adapters.download import DOWNLOADER_PORT
from fairlead.engines.containers import base
from scripts.generators.chart_files import CHART, table

_RULE = re.compile(
    r"^ *- apiGroups: \[(?P<groups>[^\]]*)\]\n(?P<more>(?: +(?:resources|resourceNames|verbs): \[.*\][^\n]*\n)+)",
    re.MULTILINE,
)
_LIST = re.compile(r"(resources|resourceNames|verbs): \[(.*?)\](?: *#[^\n]*)?\n")
_INLINE_IF = re.compile(r"\{\{ if ([^}]*) \}\}(.*?)\{\{ end \}\}")
_RULE_FILES = {
    "operator": ("operator/_rules.tpl", "operator/rbac.yaml"),
    "gateway, indexer": ("_fleet.tpl",),
    "gateway": ("gateway/rbac.yaml",),
    "autoscaler": ("autoscaler/_rules.tpl", "autoscaler/rbac.yaml"),
}
_ENGINE_PORTS = (
    (base.HTTP_PORT, "", "HTTP; of a custom engine `engine.port`", "gateways, indexers"),
    (base.KV_EVENTS_PORT, " + rank", "KV events (ZMQ)", "gateways, indexers"),
    (base.SIDE_CHANNEL_PORT, " + rank", "NIXL's side channel", "pods of the same model"),
    (base.KV_REPLAY_PORT, " + rank", "replay of KV events (ZMQ)", "gateways, indexers"),
    (base.KV_PEERS_PORT, "", "KV of peers (`kvCache.offload.peers`), no authentication", "pods of the same model"),
    (
        DOWNLOADER_PORT,
        "",
        "downloads of LoRA adapters (`adapters.download`), no authentication",
        "gateways, pods of the same model",
    ),
    (
        base.BOOTSTRAP_PORT,
        "",
        "bootstrap of Mooncake and SGLang, on prefill replicas",
        "gateways, pods of the same model",
    ),
    (base.RENDEZVOUS_PORT, "", "rendezvous of the nodes of one replica", "pods of the same model"),
)
_PORT = re.compile(r"\{name: (\w+), containerPort: (\d+)\}")
_PORT_USES = {
    ("gateway", "http"): ("OpenAI API; HTTPS with `gateway.tls`", "clients"),
    ("gateway", "manage"): (
        "management API, status page, metrics; a token, plain HTTP",
        "autoscaler, operator, Prometheus",
    ),
    ("indexer", "http"): ("probes and metrics", "kubelet, Prometheus"),
    ("operator", "http"): ("probes and metrics", "kubelet, Prometheus"),
    ("autoscaler", "http"): ("probes, metrics, decisions, wake-up calls", "kubelet, Prometheus, gateways"),
    ("redis", "redis"): ("Redis with a password", "gateways, indexers"),
}


def deployment_pages(root: Path, note: str) -> dict[str, str]:
    """Returns path → page."""
    return {
        "docs/reference/helm-values.md": _values_page(note),
        "docs/reference/rbac.md": _rbac_page(root, note),
        "docs/reference/ports.md": _ports_page(root, note),
    }


def _values_page(note: str) -> str:
    return (
        f"{note}# Helm values\n\nHelm refuses values that are not listed here. "
        "[Install for production](../how-to/install-production.md) says which to set.\n\n"
        f"{table()}"
    )


def _rbac_page(root: Path, note: str) -> str:
    rows = [row for component in _RULE_FILES for row in _rule_rows(root, component)]
    return (
        f"{note}# RBAC\n\nRights of each component, as the chart grants them. No rule has a wildcard, reads Secrets\n"
        "or grants rights. With `watchNamespaces`, rights on namespaced objects hold in these namespaces only.\n\n"
        "| Component | API group | Resources | Verbs | Only if |\n|---|---|---|---|---|\n" + "".join(rows)
    )


def _rule_rows(root: Path, component: str) -> Iterator[str]:
    for name in _RULE_FILES[component]:
        path = root / CHART / "templates" / name
        text = path.read_text(encoding="utf-8")
        for found in _RULE.finditer(text):
            lists = dict(_LIST.findall(found["more"]))
            conditions = _open_conditions(text[: found.start()])
            resources, more = _without_inline(lists["resources"])
            if "resourceNames" in lists:
                resources += f" named {lists['resourceNames']}"
            groups = found["groups"].replace('""', "core")
            condition = ", ".join(dict.fromkeys([*conditions, *more]))
            yield f"| {component} | `{groups}` | {_shown(resources)} | {lists['verbs']} | {condition} |\n"


def _shown(text: str) -> str:
    return re.sub(r"\{\{[^}]*\}\}", "its own", text.replace('{{ include "fairlead.name" . }}', "fairlead"))


def _without_inline(text: str) -> tuple[str, list[str]]:
    conditions = [f"{content.strip(' ,')}: {_value(condition)}" for condition, content in _INLINE_IF.findall(text)]
    return _INLINE_IF.sub(r"\2", text), conditions


def _open_conditions(before: str) -> list[str]:
    """Returns the values on which a line depends, from the ``if`` that are open before it."""
    stack: list[str] = []
    for word, rest in re.findall(
        r"\{\{-? *(if|range|with|define|end|else)\b([^}]*?)-?\}\}", _INLINE_IF.sub("", before)
    ):
        if word == "end":
            stack.pop()
        elif word != "else":
            stack.append(_value(rest) if word == "if" else "")
    return [condition for condition in stack if condition]


def _value(condition: str) -> str:
    """Returns a condition of the chart in words of its values; empty for the layout of roles."""
    if "readsHungEngines" in condition:
        return "`operator.hungEngines.enabled`"
    names = re.findall(r"\.Values\.([\w.]+)", condition)
    negated = "empty" in condition or condition.split()[:1] == ["not"]
    return ", ".join(f"not `{name}`" if negated else f"`{name}`" for name in names)


def _ports_page(root: Path, note: str) -> str:
    rows = []
    for component, name, port in _component_ports(root):
        what, callers = _PORT_USES[component, name]
        rows.append(f"| {component} | {port} | {what} | {callers} |\n")
    rows += [f"| replica | {port}{suffix} | {what} | {who} |\n" for port, suffix, what, who in _ENGINE_PORTS]
    return (
        f"{note}# Ports\n\nEvery port that Fairlead's pods and engines listen on. NetworkPolicies of the chart and of the\n"
        "operator let in these callers. No port of a replica asks for authentication.\n\n"
        "| Pod | Port | What | Callers |\n|---|---:|---|---|\n" + "".join(rows)
    )


def _component_ports(root: Path) -> Iterator[tuple[str, str, str]]:
    for component in dict.fromkeys(component for component, _ in _PORT_USES):
        for path in sorted((root / CHART / "templates" / component).glob("*.yaml")):
            for name, port in _PORT.findall(path.read_text(encoding="utf-8")):
                yield component, name, port
