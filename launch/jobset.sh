#!/usr/bin/env bash
# Trains on Kubernetes, as a JobSet (https://jobset.sigs.k8s.io, which the cluster must have).
#
#   launch/jobset.sh gpu           # launch/jobset_gpu.yaml, filled in, to the cluster
#   launch/jobset.sh tpu           # launch/jobset_tpu.yaml, for TPU slices on GKE
#   launch/jobset.sh gpu --print   # only print it
#
# What process 0 says:
#   kubectl logs -f --selector=jobset.sigs.k8s.io/jobset-name=msa,batch.kubernetes.io/job-completion-index=0
# kubectl delete jobset msa ends the run; the first command goes on from its last checkpoint.
set -euo pipefail
cd "$(dirname "$0")"

# What to edit, or to set in the environment.
export NAME="${NAME:-msa}"              # Of the JobSet.
export IMAGE="${IMAGE:-msa_jax}"        # See launch/Dockerfile.
export CLAIM="${CLAIM:-shared}"         # A PersistentVolumeClaim that is ReadWriteMany (NFS,
                                        # Filestore, Lustre), with the data; runs write to it.
export RUN="${RUN:-qwen3_4b}"           # Names the directory of this run in it.
case "${1:-}" in
  gpu)
    export HOSTS="${HOSTS:-8}"          # Nodes, of
    export CHIPS="${CHIPS:-8}"          # GPUs each.
    ;;
  tpu)
    export HOSTS="${HOSTS:-16}"         # Hosts of a slice, of
    export CHIPS="${CHIPS:-4}"          # chips each, which together are
    export TOPOLOGY="${TOPOLOGY:-8x8}"  # so many chips, of this kind:
    export ACCELERATOR="${ACCELERATOR:-tpu-v5-lite-podslice}"
    ;;
  *) sed -n '4,6s/^#   //p' jobset.sh >&2; exit 2 ;;
esac

# Only these: $(...) is for Kubernetes, and what the container's shell reads has no braces.
# shellcheck disable=SC2016
filled=$(envsubst '${NAME} ${IMAGE} ${CLAIM} ${RUN} ${HOSTS} ${CHIPS} ${TOPOLOGY} ${ACCELERATOR}' \
  < "jobset_$1.yaml")
if [ "${2:-}" = --print ]; then
  printf '%s\n' "$filled"
else
  # Deleted first, because the jobs of a JobSet cannot be changed.
  kubectl delete jobset "$NAME" --ignore-not-found
  printf '%s\n' "$filled" | kubectl apply -f -
fi
