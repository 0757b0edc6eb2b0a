#!/bin/sh
# What is asked of a GPU after gpu-check and gpu-bench, in ten minutes (docs/performance.md, questions
# 8 to 12). Each part has a limit of its own, and one that fails does not keep the others from running.
#
#   PYTHONPATH=$PWD/build/gpu-check/lib OUT=out sh scripts/gpu_follow_up.sh
#   DEVICE=cpu TOY=--toy OUT=/tmp/out TRITON_INTERPRET=1 sh scripts/gpu_follow_up.sh    # a rehearsal
set -u
PYTHON=${PYTHON:-python3} DEVICE=${DEVICE:-cuda} TOY=${TOY:-} OUT=${OUT:-follow-up}
export PYTHONSAFEPATH=1
mkdir -p "$OUT"

part() {  # seconds, name, command ...
    seconds=$1 name=$2
    shift 2
    began=$(date +%s)
    timeout -s INT -k 10 "$seconds" "$@" >"$OUT/$name.log" 2>&1 && said=ok || said="RED ($?)"
    echo "$said  $name  $(($(date +%s) - began)) s of $seconds"
}

# The attention among its peers with another number of parts of a prefix.
attention() {
    cat <<EOF
import sys
from args_fast.kernels import branch_attention
from args_fast.bench import ops_bench
for tuning in branch_attention.TUNING.values():
    tuning["warps"] = $1
sys.argv = ["ops_bench", "--device", "$DEVICE", "--op", "branch_attention", "--seconds", "40"]
sys.argv += ["--results", "$OUT/warps-$1", "--out", "$OUT/warps-$1"] + "$TOY".split()
sys.exit(ops_bench.main())
EOF
}

part 170 linear "$PYTHON" -m args_fast.bench.linear_bench --device "$DEVICE" $TOY \
    --ways torch triton --rows 1 10 --seconds 140 --results "$OUT" \
    --write-table --table "$OUT/linear.json"
for warps in 8 12 16; do
    part 65 "attention-warps-$warps" "$PYTHON" -c "$(attention $warps)"
done
if command -v ncu >/dev/null; then
    part 70 ncu ncu --set full --kernel-name regex:_attend --launch-skip 3 --launch-count 1 \
        --force-overwrite --export "$OUT/attend" "$PYTHON" -m args_fast.bench.ops_bench --check \
        --device "$DEVICE" --op branch_attention --seconds 5 --results "$OUT/ncu"
else
    echo "skipped  ncu: not on this machine"
fi
if command -v nsys >/dev/null; then
    part 90 nsys nsys profile --trace cuda --cuda-graph-trace node --stats true \
        --force-overwrite true --output "$OUT/step" "$PYTHON" -m args_fast bench \
        --lm opt-2.7b --rm opt-350m --prompt 128 --new-tokens 16 --method "args-fast ARGS" \
        --device "$DEVICE" --results "$OUT/nsys"
else
    echo "skipped  nsys: not on this machine"
fi
part 60 page-size "$PYTHON" -m args_fast.bench.page_size --prefix 1900 --results "$OUT"
