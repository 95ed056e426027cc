#!/usr/bin/env bash
# Creates .venv and installs a requirements file into it, once per content:  tools/setup.sh requirements.txt
set -euo pipefail
cd "$(dirname "$0")/.."
requirements=$1
stamp=.venv/$(cat requirements.txt "$requirements" | sha256sum | cut -c1-16).installed
[ -e "$stamp" ] && exit 0

python=$(for name in python3.14 python3.13 python3.12 python3.11 python3; do
  command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' && echo "$name" && break
done || true)
if [ -z "$python" ]; then
  echo "Python 3.11 or newer is needed: install it with your system's package manager and run this again." >&2
  exit 1
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq && apt-get install -y -qq python3-venv
  else
    echo "Python's venv module is missing: install it (Debian, Ubuntu: sudo apt install python3-venv) and run this again." >&2
    exit 1
  fi
fi
[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$requirements"
touch "$stamp"
