#!/usr/bin/env bash
# Starts the coordinator of a run on the head of a cluster, as soon as there is a cluster and a run:
#
#   cluster/start_coordinator.sh s3://sisa-runs/mnist
#
# The manifests run it whenever a head starts, and so after a head was lost as well: a coordinator stays with the
# keyring, and the keyring is mounted on the head. One that runs already is left alone.
set -euo pipefail

run=${1:?the address of the run is missing: start_coordinator.sh RUN}
pause_s=${SISA_RAY_START_PAUSE_S:-15}

until sisa-ray coordinator start "$run" --quiet; do
    echo "the coordinator of $run is not started yet; trying again in $pause_s s" >&2
    sleep "$pause_s"
done
echo "the coordinator of $run runs"
