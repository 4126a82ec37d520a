#!/bin/sh
# Tests and benchmark of the kernels, from the tree: no installation, no network. Usage: sh tests/gpu/run.sh [REPORT.json]
# PYTHON names an interpreter with torch, Triton, pytest and pytest-benchmark. Takes less than ten minutes: what is
# left when eight are over is not timed, and the report says so.
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")/../.." && pwd)
report=${1:-kernels.json}
case $report in /*) ;; *) report=$PWD/$report ;; esac
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
cp -R "$root/rsd_edge" "$site/rsd_edge"  # installed under other names than they have here: see pyproject.toml
for part in kernels distill export; do cp -R "$root/$part" "$site/rsd_edge/$part"; done
cd "$root"
# Versions other than the tested ones may warn of other things.
PYTHONPATH=$site PYTHONSAFEPATH=1 "${PYTHON:-python3}" -c 'import sys; from pytest import main; sys.exit(main(sys.argv[1:]))' \
    tests/gpu benchmarks/bench_kernels.py -W default -p no:cacheprovider --durations=5 -rs -q --benchmark-columns=median --benchmark-json "$report"
