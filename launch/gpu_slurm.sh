#!/usr/bin/env bash
# Trains on the GPUs of a Slurm cluster.
#
#   sbatch launch/gpu_slurm.sh
#   sbatch --nodes=1 launch/gpu_slurm.sh     # Options given here win over those below.
#
# A run that is longer than --time: submit it as often as you like. The jobs wait for each other,
# each goes on where the one before it ended, and those that find nothing left to do end at once.

#SBATCH --job-name=msa
# Jobs of one name run one after the other: two of them must never write to the same workdir.
#SBATCH --dependency=singleton
#SBATCH --nodes=8
# One process for each GPU, which is what JAX expects of Slurm: process i of a node gets its GPU i,
# prepares batches for it, and is near it. Change both numbers together.
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
# Batches are prepared by threads of the process; the documents are in the memory of each.
#SBATCH --cpus-per-task=8
#SBATCH --mem=0
#SBATCH --time=24:00:00
# Five minutes before the end of --time every process gets SIGTERM: they agree on a step, save it,
# and end.
#SBATCH --signal=TERM@300
# After the failure of a node Slurm starts the job again, on other nodes.
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

# What to edit, or to set in the environment.
: "${SHARED:=$HOME/msa}"              # A directory that all nodes see: data, and what runs write.
: "${RUN:=qwen3_4b}"                  # Names the directory of this run in it.
: "${VENV:=.venv/py3.12}"             # Where `pip install '.[cuda]'` was given.

# sbatch runs a copy of this file; the checkout is where it was submitted.
cd "${SLURM_SUBMIT_DIR:-.}"
# shellcheck disable=SC1091  # It is not there where this file is checked.
[ ! -f "$VENV/bin/activate" ] || source "$VENV/bin/activate"

# A program that was compiled once is found again by the next job.
export JAX_COMPILATION_CACHE_DIR="$SHARED/compiled"
# NCCL says which of its transports failed. If it chooses a slow network, name the fast one, as in
# NCCL_SOCKET_IFNAME=ib0; with InfiniBand, NCCL_DEBUG=INFO must show "NET/IB".
export NCCL_DEBUG="${NCCL_DEBUG:-WARN}"
# A proxy would stand between the processes; what they need from elsewhere is in $SHARED already.
unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY all_proxy ALL_PROXY

# --kill-on-bad-exit: when a process fails, Slurm ends the others at once, instead of after the
# minutes in which they take it for dead. No flag names other processes: Slurm tells JAX.
# 8 ways for parameters and groups within each node, and whole copies of that on the nodes; the
# stages' groups must be a multiple of all GPUs, here 64 (docs/clusters.md).
srun --kill-on-bad-exit=1 python -m msa_jax.train \
  --config=configs/qwen3_4b.py \
  --config.workdir="$SHARED/runs/$RUN" \
  --config.init_from="$SHARED/Qwen3-4B-Instruct-2507" \
  --config.data.tokenizer="$SHARED/Qwen3-4B-Instruct-2507" \
  --config.data.documents="$SHARED/documents.jsonl" \
  --config.data.questions="$SHARED/questions.jsonl" \
  --config.mesh.data=-1 \
  --config.mesh.fsdp=8 \
  --config.stages.warmup.groups=64 \
  --config.stages.pretrain.groups=64 \
  --config.stages.sft_8k.groups=64 \
  --config.stages.sft_64k.groups=64
