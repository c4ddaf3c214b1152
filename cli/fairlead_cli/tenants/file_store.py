"""The ModelTenants of a YAML file, which gateways read with ``--tenants``.

Only the lists of keys are changed. The new file replaces the old one at once, so that no gateway
reads half of it. Two commands that change the same file run one after the other.
"""

import fcntl
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from fairlead.errors import BadInput
from fairlead.kube.resources import Manifest, name_of
from fairlead.limits import Limits
from fairlead.manifests.yaml_nodes import decode_file, parse_documents
from fairlead.tenants.documents import add_revocations
from fairlead_cli.tenants.store import PEPPER_VARIABLE, Entry, KeyEdit, find_tenant, keys_of
from fairlead_cli.tenants.yaml_edit import KIND, is_tenant, replace_keys


class FileTenantStore:
    """The ModelTenants of one file.

    revoked: a file to which the digests of revoked keys are added; None: there is none.
    environ: holds the pepper.
    """

    def __init__(self, path: Path, revoked: Path | None, environ: Mapping[str, str]) -> None:
        self.place = str(path)
        self._path = path.resolve()
        self._revoked = revoked
        self._environ = environ

    def pepper(self) -> str:
        """Returns the pepper of the environment. Raises BadInput without one."""
        pepper = self._environ.get(PEPPER_VARIABLE, "")
        if not pepper:
            hint = "set it to the value that the gateways have"
            raise BadInput(f"{PEPPER_VARIABLE} is not set", field=PEPPER_VARIABLE, hint=hint)
        return pepper

    def tenants(self) -> Sequence[Manifest]:
        """Returns all ModelTenants of the file, by name."""
        return self._tenants_of(self._read())

    def tenant(self, name: str) -> Manifest:
        """Returns one ModelTenant. Raises BadInput if there is none of this name."""
        return find_tenant(self.tenants(), name, self.place)

    def edit_keys(self, name: str, edit: KeyEdit) -> None:
        """Changes the keys of a tenant, while no other command does."""
        with _locked(self._path.parent):
            text = self._read()
            entries = edit(keys_of(find_tenant(self._tenants_of(text), name, self.place)))
            _replace_file(self._path, replace_keys(text, name, entries, file=self.place))

    def add_revoked(self, entries: Sequence[Entry]) -> str | None:
        """Adds the digests to the file of revoked keys, if one was given."""
        if self._revoked is None:
            return None
        path = self._revoked.resolve()
        with _locked(path.parent):
            text = _read_text(path, self._revoked) if path.exists() else ""
            _replace_file(path, add_revocations(text, [str(entry["digest"]) for entry in entries]))
        return str(self._revoked)

    def _read(self) -> str:
        return _read_text(self._path, Path(self.place))

    def _tenants_of(self, text: str) -> Sequence[Manifest]:
        documents = [node.to_python() for node in parse_documents(text, file=self.place, limits=Limits())]
        tenants = [document for document in documents if is_tenant(document) and document["metadata"].get("name")]
        for tenant in tenants:
            _check_keys(tenant, self.place)
        return sorted(tenants, key=name_of)


def _check_keys(tenant: Manifest, place: str) -> None:
    spec = tenant.get("spec")
    entries = spec.get("keys") or [] if isinstance(spec, dict) else []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and entry.get("digest") for entry in entries):
        raise BadInput(
            f"{place}: spec.keys of the {KIND} {name_of(tenant)} is no list of keys",
            field="spec.keys",
            hint="each key is a mapping such as {name: prod, digest: ...}",
        )


def _read_text(path: Path, shown: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise BadInput(f"cannot read {shown}: {error.strerror}", field="--file", hint="name a file") from None
    return decode_file(raw, file=str(shown), limits=Limits())


def _replace_file(path: Path, text: str) -> None:
    """Replaces the content of a file at once; its mode stays."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, path.stat().st_mode & 0o777 if path.exists() else 0o600)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Waits for other commands that change a file of the folder.

    Why the folder: the file itself is replaced, and a lock of it would be lost.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
