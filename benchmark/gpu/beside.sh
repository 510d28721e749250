#!/bin/bash
# Engines in turn on one card, so that their numbers stand beside each other.
#   bash benchmark/gpu/beside.sh "ENGINE:SHAPE:WORK[,WORK]" ...
# ENGINE is `ours` (this tree), `ours-tpN` (on N GPUs), `ours-tpN-nccl` (the same without peer memory), or a name for which PEER_NAME
# holds the folder of an installed package `sglang`, as in PEER_sglang=/path/to/site-packages. Results: RESULTS (default .), one line of JSON per row in rows.jsonl, logs in NAME.log.
set -u
here=$(cd "$(dirname "$0")" && pwd); root=$(cd "$here/../.." && pwd)
results=${RESULTS:-.}; mkdir -p "$results"
started=$(date +%s)
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
[ -n "${NO_CEILINGS:-}" ] || python3 "$here/ceilings.py" | tee -a "$results/rows.jsonl"
for spec in "$@"; do
  IFS=: read -r engine shape work <<<"$spec"
  if [[ $engine =~ ^ours(-tp([0-9]+)(-nccl)?)?$ ]]; then
    path=$root/python:${OURS_SITE:-}; args=${OURS_ARGS:-\{\}}
    if [ -n "${BASH_REMATCH[2]}" ]; then
      more="\"tp_size\": ${BASH_REMATCH[2]}"
      [ -z "${BASH_REMATCH[3]}" ] || more="$more, \"disable_custom_all_reduce\": true"
      [ "$args" = "{}" ] && args="{$more}" || args="{$more, ${args#\{}"
    fi
  else peer=PEER_$engine; path=${!peer}; args={}; fi
  log=$results/$engine-$shape.log
  PYTHONPATH=$path timeout "${LIMIT:-240}" python3 "$here/run_engine.py" --label "$engine" --shape "$shape" \
    --work "$work" --rows "$results/rows.jsonl" --engine-args "$args" >"$log" 2>&1
  status=$?
  grep -E '^S |Capture cuda graph|not captured|all-reduces go|came back' "$log" | cut -c1-260
  [ $status = 0 ] || tail -25 "$log" | cut -c1-260
  echo "== $(($(date +%s) - started)) s: $spec ended with $status"
done
