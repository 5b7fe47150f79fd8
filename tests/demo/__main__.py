"""Play the story on a private libvirtd and a tiny guest; leave nothing behind. Exit 1 on any mismatch."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from tests.demo.stage import Gateway, Mismatch, say, step
from tests.demo.story import play
from tests.labs.domain import Guest
from tests.labs.libvirtd import PrivateLibvirtd


def main() -> int:
    """Run the demo."""
    step("Start a private libvirtd, as Debian ships it, and a tiny guest (the first time builds the guest)")
    home = Path(tempfile.mkdtemp(prefix="vg-demo-", dir="/tmp"))
    home.chmod(0o711)
    try:
        with PrivateLibvirtd(security="default") as libvirtd:
            guest = Guest(libvirtd, "demo")
            guest.wait_agent()
            say(f"libvirt: {libvirtd.uri}, guest: {guest.name}; this machine's own libvirt is not touched")
            gateway = Gateway(home, libvirtd.uri)
            try:
                play(gateway, guest)
                gateway.stop()
            except BaseException:  # whatever it was, the logs are shown
                print(gateway.log()[-4000:], f"--- libvirtd:\n{libvirtd.log()[-2000:]}", sep="\n", file=sys.stderr)
                raise
            finally:
                gateway.end()
                guest.disconnect()
    except Mismatch as mismatch:
        print(f"\nFAILED: {mismatch}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(home, ignore_errors=True)
    step("Done: everything went as promised, nothing is left running")
    return 0


if __name__ == "__main__":
    sys.exit(main())
