"""The examples of the client's README run, one after the other, against a real gateway."""

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[2] / "clients" / "python" / "README.md"


def test_every_example_runs(server, tmp_path):
    (tmp_path / "disk.raw").write_bytes(b"x" * (2 << 20))
    examples = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(examples) == 5
    told = []
    for example in examples:
        text = example.replace("unix:/run/volgate/volgate.sock", server.address)
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", text], cwd=tmp_path, check=False, capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, "")
        told.append(done.stdout)
    assert told[0] == "pools/default/volumes/web-1 1073741824\n"
    assert told[1] == "['snapshot before']\nNOT_FOUND\n"
    assert told[3].splitlines()[-1] == f"{2 << 20} {2 << 20}"
    assert (tmp_path / "copy.raw").read_bytes() == (tmp_path / "disk.raw").read_bytes()
