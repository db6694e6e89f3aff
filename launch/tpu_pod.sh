#!/usr/bin/env bash
# Trains on a TPU pod slice of Google Cloud, one process on each of its hosts.
#
#   launch/tpu_pod.sh create     # the machines
#   launch/tpu_pod.sh install    # this checkout and its packages, on every host
#   launch/tpu_pod.sh train      # starts training; give it again to go on after a failure
#   launch/tpu_pod.sh log        # what process 0 says
#   launch/tpu_pod.sh stop       # saves a checkpoint and ends the training
#   launch/tpu_pod.sh delete     # the machines cost money until then
#
# On GKE, xpk does the same from an image (launch/Dockerfile):
#   xpk workload create --workload=msa --cluster=CLUSTER --tpu-type=v5litepod-64 \
#       --docker-image=IMAGE --command="python -m msa_jax.train --config=..."
set -euo pipefail
cd "$(dirname "$0")/.."

# What to edit, or to set in the environment.
: "${TPU:=msa}"                        # A name of your choice for the machines.
: "${ZONE:=us-west4-a}"                # Where your project has quota for the next line.
: "${ACCELERATOR:=v5litepod-64}"       # 64 chips of 16 GB, on 16 hosts.
: "${RUNTIME:=v2-alpha-tpuv5-lite}"    # The system image that belongs to the accelerator.
: "${SHARE:=10.0.0.2:/msa}"            # An NFS share (Filestore) in the same network.
: "${RUN:=qwen3_4b}"                   # Names the directory of this run on the share.

# The share must be one for all hosts: the first writes what all of them read, and a run goes on
# from its checkpoints on whatever machines come next. docs/clusters.md explains the mesh.
training=(
  python -m msa_jax.train
  --config=configs/qwen3_4b.py
  "--config.workdir=/shared/runs/$RUN"
  --config.init_from=/shared/Qwen3-4B-Instruct-2507
  --config.data.tokenizer=/shared/Qwen3-4B-Instruct-2507
  --config.data.documents=/shared/documents.jsonl
  --config.data.questions=/shared/questions.jsonl
  # 8 ways for parameters and groups, and 8 for the rows of a memory, each of 1,024 tokens, so that
  # even the smallest memory of the curriculum (8K tokens) has a row for every chip.
  --config.mesh.fsdp=8
  --config.mesh.memory=8
  --config.data.row_tokens=1024
)

# Runs a command in a shell on every host.
everywhere() {
  gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$1"
}

create() {
  gcloud compute tpus tpu-vm create "$TPU" --zone="$ZONE" \
    --accelerator-type="$ACCELERATOR" --version="$RUNTIME"
}

install() {
  # What is committed, and nothing else that lies about here.
  git archive --format=tar.gz --output=msa_jax.tar.gz HEAD
  trap 'rm -f msa_jax.tar.gz' EXIT
  gcloud compute tpus tpu-vm scp msa_jax.tar.gz "$TPU": --zone="$ZONE" --worker=all
  everywhere 'mkdir -p msa_jax && tar -xzf msa_jax.tar.gz -C msa_jax'
  # The image has an older Python than msa_jax needs; uv brings one.
  # shellcheck disable=SC2016  # $HOME is that of the host.
  everywhere 'python3 -m pip install --quiet --user uv &&
    ~/.local/bin/uv venv --quiet --clear --python=3.12 ~/venv &&
    ~/.local/bin/uv pip install --quiet --python=$HOME/venv "./msa_jax[tpu]"'
  everywhere "sudo apt-get install -qq nfs-common && sudo mkdir -p /shared &&
    (mountpoint -q /shared || sudo mount -t nfs '$SHARE' /shared) && sudo chmod 777 /shared"
}

train() {
  # No flag names other processes: on a TPU, JAX asks the pod. A program that was compiled once is
  # found again on the share. Detached, because a lost connection must not end the training.
  everywhere "cd msa_jax && export JAX_COMPILATION_CACHE_DIR=/shared/compiled &&
    source ~/venv/bin/activate &&
    setsid nohup $(printf '%q ' "${training[@]}") >> ~/train.log 2>&1 < /dev/null &"
}

log() {
  gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=0 --command='tail -f train.log'
}

stop() {
  # All processes save the same step, whichever of them hears of it first. The bracket keeps
  # pkill from finding the shell that runs it.
  everywhere "pkill -TERM -f '[m]sa_jax.train'"
}

delete() {
  gcloud compute tpus tpu-vm delete "$TPU" --zone="$ZONE"
}

case "${1:-}" in
  create | install | train | log | stop | delete) "$1" ;;
  *) sed -n '4,9s/^#   //p' "$0" >&2; exit 2 ;;
esac
