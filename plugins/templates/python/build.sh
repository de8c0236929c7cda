#!/bin/sh
# Makes my-agent.wasm of policy.py; requirements.txt says what has to be in .venv for it.
set -eu
cd "$(dirname "$0")"
# Without this, packages of the machine's own Python would be taken along.
export VIRTUAL_ENV="$PWD/.venv"
exec .venv/bin/componentize-py --quiet --wit-path wit --world policy-plugin \
  componentize policy --output my-agent.wasm
