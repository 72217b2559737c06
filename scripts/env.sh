#!/usr/bin/env bash
# The Python environment of this checkout. Source it and call `ensure_env` (run time) or
# `ensure_env test` (with the test extra), or run it: scripts/env.sh [test].
# Sets CONVTVM_ROOT and CONVTVM_VENV_PYTHON. CONVTVM_PYTHON names the Python a new .venv is
# made with. Nothing is installed while the locks and pyproject.toml stay as they are.
set -euo pipefail

CONVTVM_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
CONVTVM_VENV_PYTHON="$CONVTVM_ROOT/.venv/bin/python"

env_say() { printf 'convtvm: %s\n' "$*" >&2; }

# python_at_least_3_10 PYTHON [NEWEST_MINOR]
python_at_least_3_10() {
    "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, int(sys.argv[1])))' \
        "${2:-999}" 2>/dev/null
}

find_python() {
    local candidate
    if [[ -n "${CONVTVM_PYTHON:-}" ]]; then
        if ! python_at_least_3_10 "$CONVTVM_PYTHON"; then
            env_say "error: CONVTVM_PYTHON=$CONVTVM_PYTHON is not a Python 3.10 or newer"
            return 1
        fi
        printf '%s\n' "$CONVTVM_PYTHON"
        return 0
    fi
    # A Python that the locks were tested with, else whatever newer one python3 is.
    for candidate in python3 python3.13 python3.12 python3.11 python3.10; do
        if python_at_least_3_10 "$candidate" 13; then
            printf '%s\n' "$candidate"
            return 0
        fi
    done
    if python_at_least_3_10 python3; then
        printf 'python3\n'
        return 0
    fi
    env_say "error: no Python 3.10 or newer on PATH; install one or set CONVTVM_PYTHON=/path/to/python"
    return 1
}

check_compiler() {
    local compiler="${CXX:-}"
    if [[ -n "$compiler" ]]; then
        command -v "${compiler%% *}" >/dev/null && return 0
        env_say "error: CXX=$compiler is not a command; name a C++ compiler or unset CXX"
        return 1
    fi
    for compiler in g++ c++ clang++; do
        command -v "$compiler" >/dev/null && return 0
    done
    env_say "error: no C++ compiler on PATH, and libraries are linked with one; install g++ (Debian, Ubuntu: apt-get install g++)"
    return 1
}

make_venv() {
    local python version
    python="$(find_python)" || return 1
    version="$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')" || return 1
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        env_say "error: Python $version has no venv or ensurepip; install them (Debian, Ubuntu: apt-get install python$version-venv)"
        return 1
    fi
    env_say "making .venv with Python $version"
    "$python" -m venv --clear "$CONVTVM_ROOT/.venv" || return 1
}

# The stamp of what a lock would install: the checkout's place (an editable install and the
# scripts in .venv/bin point there) and the checksum of everything pip reads.
stamp_of() {
    local lock="$1"
    printf '%s %s\n' "$CONVTVM_ROOT" \
        "$(cat "$CONVTVM_ROOT/requirements.lock" "$lock" "$CONVTVM_ROOT/pyproject.toml" | cksum)"
}

venv_works() {
    "$CONVTVM_VENV_PYTHON" -c '
import sys
from importlib.util import find_spec
sys.exit(not all(map(find_spec, sys.argv[1:])))' "$@" 2>/dev/null
}

ensure_env() {
    local kind="${1:-run}" lock stamp wanted place
    case "$kind" in
        run) lock="$CONVTVM_ROOT/requirements.lock" ;;
        test) lock="$CONVTVM_ROOT/requirements-test.lock" ;;
        *)
            env_say "error: ensure_env takes nothing or 'test', not '$kind'"
            return 1
            ;;
    esac
    check_compiler || return 1

    stamp="$CONVTVM_ROOT/.venv/convtvm-$kind.stamp"
    wanted="$(stamp_of "$lock")" || return 1
    if [[ -f "$stamp" && "$(<"$stamp")" == "$wanted" ]] && venv_works tvm convtvm; then
        return 0
    fi

    # A .venv that was moved, half made or left behind by another Python is made anew.
    for place in "$CONVTVM_ROOT"/.venv/convtvm-*.stamp; do
        if [[ -f "$place" && "$(<"$place")" != "$CONVTVM_ROOT "* ]]; then
            rm -f "$CONVTVM_VENV_PYTHON"
        fi
    done
    if ! venv_works pip; then
        make_venv || return 1
    fi
    rm -f "$CONVTVM_ROOT"/.venv/convtvm-*.stamp
    env_say "installing ${lock##*/} and convtvm into .venv (the first time: 200 MB, a minute or two)"
    "$CONVTVM_VENV_PYTHON" -m pip install -qq --disable-pip-version-check -r "$lock" || return 1
    "$CONVTVM_VENV_PYTHON" -m pip install -qq --disable-pip-version-check \
        --no-deps --no-build-isolation -e "$CONVTVM_ROOT" || return 1
    printf '%s\n' "$wanted" >"$stamp"
    if [[ "$kind" == test ]]; then
        stamp_of "$CONVTVM_ROOT/requirements.lock" >"$CONVTVM_ROOT/.venv/convtvm-run.stamp"
    fi
}

if [[ "${BASH_SOURCE[0]}" == "$0" ]]; then
    ensure_env "$@"
fi
