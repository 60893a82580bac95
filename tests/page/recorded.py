"""`python -m tests.page.recorded FILE ARGS...`: `remoco ARGS` that writes down every address it connects to beyond
this machine, and every name it asks for.
"""

import ipaddress
import socket
import sys


def local(host):
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in (None, "", "localhost", b"localhost")


def main(path, *arguments):
    connect, ask = socket.socket.connect, socket.getaddrinfo

    def note(text):
        with open(path, "a") as file:
            print(text, file=file)

    def recorded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and not local(address[0]):
            note(f"connect {address}")
        return connect(self, address)

    def asked(host, *rest, **options):
        if not local(host):
            note(f"resolve {host}")
        return ask(host, *rest, **options)

    socket.socket.connect, socket.getaddrinfo = recorded, asked
    from remoco.cli import main as remoco

    sys.exit(remoco(list(arguments)))


if __name__ == "__main__":
    main(*sys.argv[1:])
