#!/usr/bin/env bash
# Every check, then the tests, of what takes long a share; the last line is pytest's own.
set -euo pipefail
cd "$(dirname "$0")/.."
bash tests/check.sh
# Where it sees a CI, pytest explains what differs to the end, which takes minutes for an image.
exec env -u CI -u BUILD_NUMBER .venv/bin/python -m pytest -p tests.wholeness -p tests.timekeeping -n 2 --dist loadfile --no-loadscope-reorder tests
