"""The parsing process: reads files from its parent, and replies.

    python -m fairlead_gateway.supervisor.file_parsing.process

It serves one query after the other, and ends when its input does. It opens no file and no socket.
"""

from dataclasses import replace

from fairlead.errors import ManifestError
from fairlead.fleet.file.format import parse_fleet_file
from fairlead.limits import Limits
from fairlead.manifests.yaml_nodes import decode_file
from fairlead.runtime import process_tuning
from fairlead_gateway.ipc.child_process import serve_parent
from fairlead_gateway.supervisor.file_parsing.messages import FLEET, TENANTS, FileQuery, FileReply
from fairlead_gateway.tenants.supervisor.key_list import parse_key_file


def parse(query: FileQuery) -> FileReply:
    """Returns the reply for one file."""
    limits = replace(Limits(), **query.limits)
    try:
        text = decode_file(query.content, file=query.file, limits=limits)
        if query.subject == FLEET:
            return FileReply(fleet=parse_fleet_file(text, file=query.file, limits=limits))
        if query.subject == TENANTS:
            from fairlead_gateway.tenants.supervisor.tenant_list import parse_tenant_file

            return FileReply(tenants=parse_tenant_file(text, file=query.file, limits=limits))
        return FileReply(names_by_digest=dict(parse_key_file(text, file=query.file, limits=limits)))
    except ManifestError as error:
        return FileReply(problems=error.problems)


if __name__ == "__main__":
    process_tuning.deny_inspection()
    serve_parent(FileQuery, parse)
