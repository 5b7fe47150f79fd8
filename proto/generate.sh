#!/usr/bin/env bash
# Generate the Python stubs. The proto package's path is the import path, so nothing is repaired afterwards.
# usage: proto/generate.sh [OUTPUT]   (default: gateway)
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-gateway}
mkdir -p "$out/volgate/v1"
PATH=$PWD/.venv/bin:$PATH .venv/bin/python -m grpc_tools.protoc -Iproto \
    --python_out="$out" --grpc_python_out="$out" --mypy_out="$out" --mypy_grpc_out="$out" \
    proto/volgate/v1/*.proto
