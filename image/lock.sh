#!/bin/sh
# Writes requirements.lock and build.lock anew, with the hash of every file of each version: run it after a change of the dependencies
# in pyproject.toml. It needs uv (pip install uv) and the package index. Versions stay as they are unless `--upgrade` is given.
set -eu
cd "$(dirname "$0")/.."
lock() { uv pip compile --quiet --generate-hashes --python-version 3.11 --custom-compile-command 'image/lock.sh' "$@"; }
lock "$@" --extra server --extra kubernetes pyproject.toml --output-file image/requirements.lock
lock "$@" --constraint image/requirements.lock image/build.in --output-file image/build.lock
