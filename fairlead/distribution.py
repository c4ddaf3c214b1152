"""The name of the distribution in registries and releases, where the project is registered, and
messages about absent packages.
"""

from dataclasses import dataclass
from typing import Final

from fairlead import __version__

DISTRIBUTION: Final = "fairlead-serving"
"""The name in package registries. The name ``fairlead`` there is that of another project."""
WHEEL: Final = f"{DISTRIBUTION.replace('-', '_')}-{__version__}-py3-none-any.whl"
"""The file name of this release's wheel."""
EXTRAS: Final = {"kopf": "operator", "cryptography": "tokens", "obstore": "downloads"}
"""Import package → the extra that brings it. The distribution's own dependencies are not here."""


@dataclass(frozen=True, slots=True)
class RegisteredAddresses:
    """Public addresses of the project; None until one is registered.

    repository: the sources. site: the documentation. images: the prefix of image names.
    releases: the folder that holds the files of this release.
    """

    repository: str | None = None
    site: str | None = None
    images: str | None = None
    releases: str | None = None

    def documentation_page(self, path: str) -> str:
        """Returns the address of a page for this release, such as `reference/checks.html`.

        Without a registered site, it is the path inside of the site that `make docs` builds.
        """
        if self.site is None:
            return path
        release_line = ".".join(__version__.split(".")[:2])
        return f"{self.site}/{release_line}/{path}"


ADDRESSES: Final = RegisteredAddresses()
"""The only place where addresses stand. `make generate` and `make release` write them into the
metadata of the wheel, the chart and the kubectl plugin.
"""


def missing_package(error: BaseException | None) -> str | None:
    """Returns the package of another project whose absence caused an error; None for other errors.

    Why: the loader of commands wraps the error.
    """
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("fairlead"):
            return error.name.partition(".")[0]
        error = error.__cause__
    return None


def missing_package_message(package: str) -> str:
    """Returns what to install when an import package of another project is absent."""
    extra = EXTRAS.get(package)
    if extra is None:
        return f"the package {package} is not installed: pip install {WHEEL} installs it"
    return f"this needs the extra {extra}: pip install '{WHEEL}[{extra}]'"
