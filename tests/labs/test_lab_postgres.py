"""The private PostgreSQL of the labs, and the lab for people."""

import subprocess
import sys
import tomllib
from pathlib import Path

import psycopg
import pytest

from tests.labs.guest import BUILD
from tests.labs.lab import POSTGRES_BASE, running
from tests.labs.postgres import PostgresServer

ROOT = Path(__file__).parents[2]


def test_a_server_is_killed_restarted_frozen_and_leaves_nothing():
    with PostgresServer() as server:
        name = server.create()
        with server.admin(name) as connection:
            connection.execute("CREATE TABLE kept (n integer)")
            connection.execute("INSERT INTO kept VALUES (1)")
        for act in (server.kill9, server.stop):
            act()
            with pytest.raises(psycopg.OperationalError):
                server.admin(name)
            server.start()
        server.freeze()
        with pytest.raises(psycopg.OperationalError):
            server.admin(name)
        server.thaw()
        with server.admin(name) as connection:
            assert connection.execute("SELECT n FROM kept").fetchall() == [(1,)]
        base, pid = server.base, server.pid
    assert not base.exists() and not Path(f"/proc/{pid}").exists()


def test_the_lab_for_people_has_a_database_that_a_controller_can_use():
    def lab(action: str) -> str:
        argv = [sys.executable, "-m", "tests.labs.lab", action, "postgres"]
        return subprocess.run(argv, cwd=ROOT, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout

    mine = not running(BUILD / "postgres")  # somebody may be at work in it
    printed = lab("start")
    try:
        settings = BUILD / "postgres" / "volgate.toml"
        assert tomllib.loads(settings.read_text())["database"]["url"] in printed
        argv = [sys.executable, "-m", "volgate.cli", "serve", "--check", "--config", str(settings)]
        checked = subprocess.run(argv, check=False, capture_output=True, text=True)
        assert checked.returncode == 0 and "schema" in checked.stderr, checked.stderr
        assert lab("start") == printed
    finally:
        if mine:
            lab("stop")
            assert not POSTGRES_BASE.exists()
