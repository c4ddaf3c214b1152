"""`python -m fairlead_testing.forks FD …`: a fork server, whose requests come from a socket."""

import os
import socket
import sys

from fairlead_testing.forks.fork_server import serve

if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
    os._exit(0)  # the modules need no teardown
