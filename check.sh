#!/usr/bin/env bash
# Everything a change must pass: lint, format, types, tests. The same for a developer (`make test`) and for CI.
set -euo pipefail
cd "$(dirname "$0")"
BIN=${BIN:-}

"${BIN}ruff" check .
"${BIN}ruff" format --check .
"${BIN}mypy"
"${BIN}pytest" --numprocesses auto "$@"
