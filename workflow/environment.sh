#!/usr/bin/env bash
# workflow/environment.sh install    installs the locked packages, unless they are there
# workflow/environment.sh remove     removes the environment that it installed
#
# Reads PYTHON, VENV and TORCH, as the Makefile describes them. It only ever deletes a folder that
# holds .shardmark, which it writes before anything else; where unsure, it stops.
set -euo pipefail

stop() { echo "shardmark: $*" >&2; exit 1; }

# Deletes the environment, or says why not.
delete() {
  [ ! -L "$venv" ] || stop "$VENV is a link and is left alone; name the folder it leads to with" \
    "make VENV=$(readlink -f -- "$venv")"
  [ -f "$venv/.shardmark" ] || stop "$VENV is there and make did not create it; name another place" \
    "with make VENV=..."
  rm -rf -- "$venv"
}

install() {
  case $TORCH in
    lock) lock=requirements.txt flags=() ;;
    site) lock=requirements-site.txt flags=(--system-site-packages) ;;
    *) stop "TORCH=$TORCH: it is lock (the locked torch) or site (the interpreter's own)" ;;
  esac
  # Named after what is installed, and written last: another lock, or an interrupted installation,
  # is installed afresh; otherwise there is nothing to do.
  local locked ready
  locked=$(cat "$lock" requirements-bootstrap.txt | cksum | tr ' ' '-')
  ready=$venv/.shardmark-$TORCH-$locked
  [ ! -e "$ready" ] || return 0

  command -v -- "$PYTHON" > /dev/null || stop "there is no $PYTHON here; name one with make PYTHON=..."
  "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    stop "needs Python 3.11 or newer, and $PYTHON is" \
      "$("$PYTHON" -c 'import platform; print(platform.python_version())');" \
      "name another with make PYTHON=..."
  # Once installed, python3 on the PATH is the environment's own, which goes with it.
  local base
  base=$("$PYTHON" -c 'import sys; print(sys._base_executable)')
  if [ -e "$venv" ] || [ -L "$venv" ]; then delete; fi

  echo "installing into $VENV from $lock"
  mkdir -p -- "$venv"
  touch -- "$venv/.shardmark"
  "$base" -m venv "${flags[@]}" "$venv"
  "$venv/bin/python" -m pip install --quiet --require-hashes -r requirements-bootstrap.txt
  "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --require-hashes --no-deps \
    --compile-bytecode -r "$lock"
  "$venv/bin/python" -c 'import torch, torchvision' ||
    stop "torch and torchvision do not import (the last line above says why)"
  touch -- "$ready"
}

remove() {
  if [ -f "$venv/.shardmark" ]; then delete; fi
}

CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
[ -n "$VENV" ] || stop "VENV is empty; name a folder with make VENV=..."
case $VENV in
  *[:$'\n']*) stop "VENV=$VENV: a folder on the PATH has no colon and no line break in its name" ;;
  "~"*) stop "VENV=$VENV: write the folder in full, since ~ is the shell's" ;;
esac
case $VENV in
  /*) venv=$VENV ;;
  *) venv=$PWD/$VENV ;;
esac
# With a slash at its end a link is taken for the folder that it leads to.
while [[ $venv == */ ]]; do venv=${venv%/}; done
case ${1-} in
  install | remove) "$1" ;;
  *) stop "$0 install, or $0 remove" ;;
esac
