"""The part of pytest that runs in the guest: it collects one module, runs each test when it is told to, and sends the reports out."""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Any

import pytest

from tests.labs.kernel.machine import TESTS_PORT

__all__ = ["INSIDE"]

INSIDE = "VOLGATE_KERNEL_LAB"  # set in the guest


class Channel:
    """Objects, a line each, through the virtual serial port."""

    def __init__(self, path: str) -> None:
        """Open it."""
        self._port = os.open(path, os.O_RDWR)
        self._buffer = b""

    def send(self, message: dict[str, Any]) -> None:
        """Send one."""
        data = json.dumps(message, default=str).encode() + b"\n"
        while data:
            data = data[os.write(self._port, data) :]

    def receive(self) -> dict[str, Any]:
        """Wait for one."""
        while b"\n" not in self._buffer:
            self._buffer += os.read(self._port, 1 << 16)
        line, _, self._buffer = self._buffer.partition(b"\n")
        return dict(json.loads(line))


class Inside:
    """What pytest's own loop would do, as told from outside."""

    def __init__(self, channel: Channel, options: dict[str, Any]) -> None:
        """`options` are those of the run outside."""
        self._channel, self._options = channel, options
        self._config: pytest.Config | None = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_cmdline_main(self, config: pytest.Config) -> None:
        """Take the options over before anybody looks at them."""
        self._config = config
        vars(config.option).update(self._options)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run what is asked for."""
        if session.testsfailed:
            raise session.Interrupted("the module cannot be collected")
        items = {item.nodeid: item for item in session.items}
        self._channel.send({"ready": list(items)})
        while wanted := self._channel.receive().get("run"):
            item, following = items[wanted[0]], items.get(wanted[1])
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            self._channel.send({"done": item.nodeid})
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Send a report."""
        assert self._config
        self._channel.send({"report": self._config.hook.pytest_report_to_serializable(config=self._config, report=report)})

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Tell why a module cannot be collected."""
        if report.failed:
            self._channel.send({"broken": report.longreprtext})


def main() -> None:
    """Be pytest, as the line of JSON says that waits in the port."""
    channel = Channel(f"/dev/virtio-ports/{TESTS_PORT}")
    told = channel.receive()
    status: object = "it crashed"
    try:
        status = pytest.main(told["arguments"], plugins=[Inside(channel, told["options"])])
    except BaseException:  # whatever it was, it is told outside
        status = traceback.format_exc()
        raise
    finally:
        channel.send({"ended": str(status)})
    sys.exit(0)


if __name__ == "__main__":
    main()
