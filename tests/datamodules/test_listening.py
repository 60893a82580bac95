"""What listens while our commands run: nothing that another machine could reach."""

import subprocess
import sys

import pytest

from tests.support.installed import need

LISTENING = """
import ipaddress, os, socket, struct, sys
from pathlib import Path

def family(pid):
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            pass
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found

def listening():
    # addresses and ports on which this process and those below it listen, from the kernel's tables
    inodes = set()
    for pid in family(os.getpid()):
        for path in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                inodes.add(os.readlink(path))
            except OSError:
                pass
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in inodes:
                place, port = words[1].split(":")
                raw = b"".join(struct.pack("=I", int(place[i : i + 8], 16)) for i in range(0, len(place), 8))
                address = ipaddress.ip_address(raw)
                found.append((getattr(address, "ipv4_mapped", None) or address, int(port, 16)))
    return found
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the kernel's tables")
@pytest.mark.slow
def test_a_ray_that_is_started_here_listens_on_this_machine_alone():
    """Of `prepare --ray local`, and of a sweep: its scheduler, its store, its workers."""
    need("ray", "ray")
    code = """
from remoco.common.ray_connection import connected
with connected("local", 1) as ray:
    assert ray.get(ray.remote(lambda: os.getpid()).remote()) != os.getpid()
    found = listening()
    assert len(found) >= 4, found
    print(*(f"{address}:{port}" for address, port in found if not address.is_loopback))
"""
    done = subprocess.run([sys.executable, "-c", LISTENING + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
