#!/bin/bash
# srun starts this once on each node. It becomes the launcher of that node's processes: under most
# sites' SLURM only the first process of a task hears a signal, and it passes stop requests on.

cd /shared/runs/digits-1/snapshot || exit

# A stop request that comes before the launcher listens must not kill it; it is sent again.
trap '' USR1

# SLURM_NODEID is this node's own only here: in the batch script it is 0.
exec /shared/venv/bin/python -m launcher job node "$1" \
    --nproc 1 --nnodes "$SLURM_NNODES" --node-rank "$SLURM_NODEID" \
    --rdzv-endpoint "$LAUNCHER_ENDPOINT"
