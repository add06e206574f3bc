#!/usr/bin/env bash
# Every check and test, on real servers. Options go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup/prepare.sh"
prepare dev
cd "$ROOT"
export PATH="$VENV/bin:$PATH"
ruff check .
ruff format --check .
mypy
lint-imports
exec python -m pytest "$@"
