#!/usr/bin/env bash
# Trains a run on the nodes of a Slurm allocation:
#
#   sbatch cluster/slurm.train.sh mnist.yaml
#
# One Ray node on each; shards queue where there are more of them than GPUs. A job that ran out of time is submitted
# again and goes on from the last checkpoints. Its exit code is that of `sisa-ray train`.
#
#SBATCH --job-name=sisa-train     # default of Slurm: the script's name
#SBATCH --nodes=3                 # default of Slurm: 1
#SBATCH --ntasks-per-node=1       # one Ray node on each. Default of Slurm: 1
#SBATCH --gpus-per-node=4         # of one kind: bits depend on the device. Default of Slurm: none
#SBATCH --cpus-per-task=32        # default of Slurm: 1
#SBATCH --mem=0                   # all of a node's memory. Default of Slurm: the partition's
#SBATCH --time=24:00:00           # default of Slurm: the partition's
#SBATCH --output=%x-%j.log        # progress included. Default of Slurm: slurm-%j.out
#SBATCH --signal=B:TERM@120       # two minutes' notice before the time is up. Default of Slurm: none
set -euo pipefail

config=${1:?the configuration is missing: sbatch cluster/slurm.train.sh CONFIG}

# The project's environment and the keyring lie in file systems that all nodes share.
export PATH="${SISA_RAY_BIN:-$PWD/.venv/bin}:$PATH"
export SISA_RAY_KEYRING="${SISA_RAY_KEYRING:-$HOME/.config/sisa_ray/keys}"

# Others have jobs on these nodes: the cluster asks for a token that only this job knows.
token_dir=$(mktemp -d "$HOME/.sisa-ray-job-XXXXXXXX")
head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n' > "$token_dir/token"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$token_dir/token"
# Ports and files are the job's own. What Ray spills and logs goes with it.
export RAY_TMPDIR="/tmp/ray-$SLURM_JOB_ID"
# All nodes end together: there is nowhere for work to move to. Default: 30
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0
export HEAD_ADDRESS HEAD_PORT
HEAD_ADDRESS=$(hostname -I | awk '{ print $1 }')
HEAD_PORT=$((20000 + SLURM_JOB_ID % 10000))

# shellcheck disable=SC2329  # srun calls them
start_head() {
    exec ray start --head --block --disable-usage-stats --include-dashboard=false \
        --node-ip-address="$HEAD_ADDRESS" --port="$HEAD_PORT"
}
# shellcheck disable=SC2329
start_worker() {
    until ray health-check --address "$HEAD_ADDRESS:$HEAD_PORT" 2> /dev/null; do sleep 2; done
    exec ray start --block --disable-usage-stats --address="$HEAD_ADDRESS:$HEAD_PORT"
}
export -f start_head start_worker

steps=()
# shellcheck disable=SC2329  # the trap calls it
finish() {
    kill -TERM "${steps[@]}" 2> /dev/null || true
    wait "${steps[@]}" 2> /dev/null || true
    srun --overlap --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 rm -rf "$RAY_TMPDIR" || true
    rm -rf "$token_dir"
}
trap finish EXIT

# The batch script runs on the first node; --overlap: beside the driver, which is no step.
srun --overlap --nodes=1 --ntasks=1 --nodelist="$SLURMD_NODENAME" bash -c start_head &
head_step=$!
steps+=("$head_step")
if ((SLURM_JOB_NUM_NODES > 1)); then
    srun --overlap --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks-per-node=1 --exclude="$SLURMD_NODENAME" \
        bash -c start_worker &
    steps+=($!)
fi
until ray health-check --address "$HEAD_ADDRESS:$HEAD_PORT" 2> /dev/null; do
    kill -0 "$head_step" 2> /dev/null || { echo "error: Ray did not start; its log is above" >&2; exit 1; }
    sleep 2
done

# The other nodes join as they come.
RAY_ADDRESS="$HEAD_ADDRESS:$HEAD_PORT" sisa-ray train "$config" &
driver=$!
# Slurm's notice reaches this shell alone. The driver keeps what was committed, and says so with its exit code.
trap 'kill -TERM "$driver" 2> /dev/null || true' TERM
code=0
wait "$driver" || code=$?
while kill -0 "$driver" 2> /dev/null; do # the notice ended the wait, and not the driver
    code=0
    wait "$driver" || code=$?
done
exit "$code"
