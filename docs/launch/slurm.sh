#!/usr/bin/env bash
# Six nodes of eight GPUs: sbatch docs/launch/slurm.sh RECIPE RUN
# The job saves ten minutes before its time is over and queues itself again, until the report is written.
#SBATCH --job-name=astrolabe
#SBATCH --nodes=6
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
recipe=$1 run=$2 # RUN lies on a file system that all nodes see

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export OMP_NUM_THREADS=8

srun --kill-on-bad-exit=0 torchrun \
    --nnodes "$SLURM_NNODES" --nproc-per-node 8 --max-restarts 10 \
    --rdzv-backend c10d --rdzv-endpoint "$head:29500" --rdzv-id "$SLURM_JOB_ID" \
    -m astrolabe train "$recipe" --out "$run" --auto-resume &

# The signal goes to the training processes themselves: torchrun would end them at once.
leave() { srun --overlap --ntasks-per-node=1 pkill -USR1 -f 'python[0-9.]* -u -m astrolabe' || true; }
trap leave USR1
# A trapped signal ends `wait`; the second waits for the checkpoint.
wait $! || true
wait $! || true
[ -e "$run/report.html" ] || scontrol requeue "$SLURM_JOB_ID"
