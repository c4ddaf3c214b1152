"""The id of an installation, which its operator writes as a label to all children of models."""

from collections.abc import Iterable, Mapping

from fairlead.errors import SettingsError
from fairlead.fleet.labels import INSTALLATION_LABEL
from fairlead.names import DNS_SUBDOMAIN_PATTERN, shorten_name


def parse_installation(text: str) -> str:
    """Returns the id as a label value: longer ones are cut, with a hash."""
    if text and not DNS_SUBDOMAIN_PATTERN.fullmatch(text):
        name, hint = "FAIRLEAD_INSTALLATION", "use lower-case letters, digits, - and ., like NAMESPACE.RELEASE"
        raise SettingsError(f"{name}: {text[:70]!r} is not an id", field=name, hint=hint)
    return shorten_name(text)


def installation_of(children: Iterable[Mapping[str, str]]) -> str:
    """Returns the id of the installation that manages a model; empty for none.

    Children of two installations belong to the one whose id comes first, so that both agree.

    children: the labels of each.
    """
    return min(filter(None, (labels.get(INSTALLATION_LABEL) for labels in children)), default="")
