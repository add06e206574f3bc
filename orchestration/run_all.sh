#!/usr/bin/env bash
# Set up what is missing, then start everything. Options are those of `flead up`; see --help.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup/prepare.sh"
prepare pipeline
exec "$VENV/bin/flead" up "$@"
