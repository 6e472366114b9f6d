"""Machines with networks of their own: Linux network namespaces on one bridge. Files and processors they share."""

import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """A namespace, and its address on the bridge."""

    name: str
    address: str

    @property
    def command(self) -> list[str]:
        """What a command line begins with that is to run there."""
        return ["ip", "netns", "exec", self.name]


def why_not() -> str:
    """Why this machine cannot make any; "" if it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        with machines(1):
            return ""
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no network namespaces here: {error}"


@contextmanager
def machines(count: int) -> Iterator[tuple[str, list[Machine]]]:
    """Make `count` of them; gives the address of this machine on their bridge, and them."""
    tag, subnet = secrets.token_hex(3), f"10.{200 + secrets.randbelow(50)}.{secrets.randbelow(250)}"
    bridge = f"vb{tag}"
    with ExitStack() as made:
        _ip("link", "add", bridge, "type", "bridge")
        made.callback(_ip, "link", "del", bridge)
        _ip("address", "add", f"{subnet}.1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        found = []
        for number in range(count):
            machine = Machine(f"visage-{tag}-{number}", f"{subnet}.{number + 2}")
            outer, inner = f"vo{tag}{number}", f"vi{tag}{number}"
            _ip("netns", "add", machine.name)
            made.callback(_ip, "netns", "del", machine.name)
            _ip("link", "add", outer, "type", "veth", "peer", "name", inner, "netns", machine.name)
            _ip("link", "set", outer, "master", bridge, "up")
            _ip("-n", machine.name, "address", "add", f"{machine.address}/24", "dev", inner)
            for device in ("lo", inner):
                _ip("-n", machine.name, "link", "set", device, "up")
            found.append(machine)
        yield f"{subnet}.1", found


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
