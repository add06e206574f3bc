#!/usr/bin/env bash
# Stop what run_all.sh started. Options are those of `flead down`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup/prepare.sh"
[ -x "$VENV/bin/flead" ] || die "nothing has been set up here: orchestration/run_all.sh does that"
exec "$VENV/bin/flead" down "$@"
