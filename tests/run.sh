#!/usr/bin/env bash
# Every check, then every test; the last line is pytest's own.
set -euo pipefail
cd "$(dirname "$0")/.."
bash tests/check.sh
exec .venv/bin/python -m pytest -p tests.wholeness -p tests.timekeeping -n 2 --dist loadfile --no-loadscope-reorder tests
