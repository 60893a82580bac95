#!/usr/bin/env bash
# Measure what fits into MINUTES on a CUDA GPU, in order of value; each part writes its table as it goes.
#
#     benchmarks/gpu.sh MINUTES [--dry]     --dry: everything here, without a GPU, at size `tiny`
#     benchmarks/gpu.sh --packages          what a machine with torch alone lacks, for `pip download`
#
# OUT (default runs/gpu) is where the tables go, PYTHON (default python3) what runs them. Ends with 1 if a part failed;
# a part that needs CUDA, or for which no time is left, is printed as skipped.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
OUT=${OUT:-runs/gpu}
FAILED=()

packages() {  # at the versions that this was tested with, none of which brings another torch
    grep -E "^($(tr '\n' '|' <benchmarks/gpu.txt | sed 's/|$//'))==" constraints.txt
}

missing() {
    "$PYTHON" - <<'PY'
from importlib.util import find_spec
needed = "torch diffusers transformers peft lightning jsonargparse torchmetrics safetensors yaml pytest".split()
print(*(name for name in needed if find_spec(name) is None))
PY
}

part() {  # part NAME SECONDS_AT_LEAST CUDA COMMAND...: CUDA is `cuda` where the part is nothing without it
    local name=$1 least=$2 cuda=$3 left=$((END - SECONDS))
    shift 3
    echo "== $name"
    if [[ $cuda == cuda && $DEVICE == cpu ]]; then
        echo "skipped: needs CUDA"
        return
    fi
    if ((left < least || left < 1)); then # 0 is no limit to `timeout`
        echo "skipped: $left s left, needs $least"
        return
    fi
    timeout --kill-after 10 "$left" "$@" 2>"$OUT/$name.err" | tee "$OUT/$name.md"
    local code=${PIPESTATUS[0]}
    if ((code == 124 || code == 137)); then
        echo "stopped: the time is over"
    elif ((code != 0)); then
        echo "failed with $code: the last lines of $OUT/$name.err:"
        tail -n 5 "$OUT/$name.err"
        FAILED+=("$name")
    fi
}

if [[ ${1:-} == --packages ]]; then
    packages
    exit
fi
if [[ ! ${1:-} =~ ^[0-9]+$ || ! ${2:---dry} == --dry ]]; then
    echo "usage: benchmarks/gpu.sh MINUTES [--dry] | --packages" >&2
    exit 2
fi
END=$((SECONDS + 60 * $1))
if lacking=$(missing) && [[ -n $lacking ]]; then
    echo "missing: $lacking. Elsewhere: benchmarks/gpu.sh --packages >needed.txt; pip download --no-deps -d wheels -r needed.txt" >&2
    echo "Here: pip install --no-deps --no-index -f wheels -r needed.txt" >&2
    exit 2
fi
mkdir -p "$OUT"
if [[ ${2:-} == --dry ]]; then
    DEVICE=cpu
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    AT=(--device cpu --size tiny)
    SVD=("${AT[@]}" --frames 2 --height 64 --width 64) WAN=("${AT[@]}" --frames 9 --height 64 --width 96)
    FEW=(--steps 1) BATCH=(--batch 1) CLIP=(--steps 1 --times 1)
    S=0 # seconds that a part must have
else
    DEVICE=cuda
    SVD=(--device cuda) WAN=(--device cuda --frames 81 --height 480 --width 832)
    FEW=(--steps 5) BATCH=() CLIP=(--times 3)
    S=1
fi

# the tests say what they skipped, and why
part tests $((60 * S)) any "$PYTHON" -m pytest -q -m gpu -o addopts= -rs -p no:cacheprovider \
    $(grep -rl --include "test_*.py" "mark.gpu" tests)
# `training.py` prints the ceilings first
part svd_step $((60 * S)) any "$PYTHON" benchmarks/training.py "${SVD[@]}" "${BATCH[@]}" "${FEW[@]}" \
    --only recipe "bare network, forward and gradient"
part svd_step_all $((40 * S)) any "$PYTHON" benchmarks/training.py "${SVD[@]}" "${BATCH[@]}" "${FEW[@]}" \
    --only "all levels recomputed"
part svd_step_compiled $((120 * S)) cuda "$PYTHON" benchmarks/training.py "${SVD[@]}" "${BATCH[@]}" "${FEW[@]}" \
    --only compiled
# with a GPU it also records the step as a CUDA graph, in the same table
part sampling $((60 * S)) any "$PYTHON" benchmarks/sampling.py "${SVD[@]}" "${CLIP[@]}" --no-compile
[[ $DEVICE == cuda ]] || part sampling_graph 0 cuda
part wan_5b_step $((60 * S)) any "$PYTHON" benchmarks/training.py --base wan5b "${WAN[@]}" --batch 1 "${FEW[@]}" \
    --only recipe "bare network, forward and gradient"
part vae $((40 * S)) any "$PYTHON" benchmarks/training.py "${SVD[@]}" "${BATCH[@]}" "${FEW[@]}" \
    --only "encoding the videos" "VAE in bfloat16"
# says `out of memory` in its table where that is so
part wan_14b_step $((90 * S)) any "$PYTHON" benchmarks/training.py --base wan14b "${WAN[@]}" --batch 1 "${FEW[@]}" \
    --only "all levels recomputed"

echo "== $((SECONDS / 60)) min $((SECONDS % 60)) s; tables in $OUT"
if ((${#FAILED[@]})); then
    echo "failed: ${FAILED[*]}"
    exit 1
fi
