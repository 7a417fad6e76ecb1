#!/bin/sh
# Pins everything, from what setup.cfg asks for:
#   images/components/requirements.txt        what the component image holds, with hashes
#   images/components/build-requirements.txt  what builds its wheel, with hashes
#   constraints.txt                           the same versions and those of all extras, for development
# What is pinned stays as long as it fits: `images/components/lock.sh --upgrade` takes the newest (other options of
# `uv pip compile` work too). Needs uv: `pip install -c constraints.txt uv`.
set -eu
cd "$(dirname "$0")/../.."

compile() { # OUTPUT INPUT OPTIONS…: one lock for every platform, Python 3.11 and newer
    output=$1
    shift
    "${UV:-uv}" pip compile --quiet --universal --python-version 3.11 --no-emit-index-url \
        --custom-compile-command images/components/lock.sh --output-file "$output" "$@" > /dev/null
}

lock=images/components/requirements.txt
compile "$lock" setup.cfg --generate-hashes --no-annotate "$@"
echo 'setuptools>=77' | compile images/components/build-requirements.txt - --generate-hashes "$@"
echo uv | compile constraints.txt setup.cfg emulators/pyproject.toml - --all-extras --no-annotate --constraint "$lock" "$@"
