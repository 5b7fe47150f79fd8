#!/usr/bin/env bash
# Lint, types, import rules, and the contract: buf's rules, no breaking change, stubs equal to proto/.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH=$PWD/.venv/bin:$PATH

ruff check --quiet .
ruff format --quiet --check .
mypy -p volgate -p volgate_plugins -p volgate_client
lint-imports
buf lint proto
previous=$(git rev-list -1 HEAD~1 -- proto 2>/dev/null || true)
if [ -n "$previous" ] && git cat-file -e "$previous:proto/buf.yaml" 2>/dev/null; then
    earlier=$(mktemp -d)
    trap 'rm -rf "$earlier"' EXIT
    git archive "$previous" proto | tar -x -C "$earlier"
    buf breaking proto --against "$earlier/proto"
fi
made=$(mktemp -d)
bash proto/generate.sh "$made" 2>/dev/null
diff -r "$made/volgate/v1" gateway/volgate/v1 -x __pycache__
rm -rf "$made"
echo "check: all passed"
