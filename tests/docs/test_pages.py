"""The pages do what they say: their commands run against a real gateway and a real guest, their links lead somewhere."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs import console
from tests.edge.server import Server
from tests.labs.domain import Guest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
EXECUTED = [page for page in PAGES if page.name != "plugins.md" and "```console\n" in page.read_text(encoding="utf-8")]


@pytest.fixture
def server(guest: Guest, pool_dir: Path) -> Iterator[Server]:
    """A gateway on a state directory that the guest's QEMU can reach, and on the lab's libvirt."""
    state = pool_dir.parent / "state"
    config = f'[hosts.local]\nuri = "{guest.libvirtd.uri}"\n'
    config += f'[pools.default]\nkind = "directory"\npath = "{state}/pools/default"\ntrash_seconds = 3600\n'
    made = Server(state, config=config).start(timeout=60)
    yield made
    assert made.stop() == 0
    guest.detach_all()


@pytest.mark.parametrize("page", EXECUTED, ids=lambda page: page.name)
def test_the_commands_of_a_page_do_what_it_says(page, server, tmp_path):
    ran = console.run(page, server=server.address, folder=tmp_path, STATE_DIR=str(server.state))
    assert len(ran) >= 5


def test_every_link_leads_to_a_file():
    links = [(page, target) for page in PAGES for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))]
    assert len(links) > 20
    assert not [
        f"{page.relative_to(ROOT)}: {target}" for page, target in links if "://" not in target and not (page.parent / target).exists()
    ]
