#!/bin/bash
# Two machines of eight GPUs each. The folder of the run lies on a file system that both see.
#SBATCH --job-name=temporallens
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
set -euo pipefail

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun \
    --nnodes="$SLURM_NNODES" --nproc-per-node=8 \
    --rdzv-id="$SLURM_JOB_ID" --rdzv-backend=c10d --rdzv-endpoint="$first:29500" \
    -m temporallens run studies/gemma-2-2b.yaml --out "$HOME/runs/gemma-2-2b"
