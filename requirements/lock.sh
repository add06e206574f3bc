#!/usr/bin/env bash
# Pin what the *.in files ask for, with hashes and without any address. Needs uv.
set -euo pipefail
cd "$(dirname "$0")/.."
compile() {
  uv pip compile --quiet --generate-hashes --no-emit-index-url --no-emit-find-links --python-version 3.11 --universal \
    --custom-compile-command requirements/lock.sh "$@"
}
compile requirements/uv.in -o requirements/uv.txt
compile requirements/pipeline.in -o requirements/pipeline.txt
compile requirements/java.in -o requirements/java.txt
compile requirements/superset.in -o requirements/superset.txt
compile -c requirements/pipeline.txt requirements/dev.in -o requirements/dev.txt
