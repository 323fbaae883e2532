#!/usr/bin/env bash
# Make schema-N/, the stored run of the present schema: PATH=$PWD/.venv/bin:$PATH bash tests/data/runs/make.sh N
# A stored run never changes: tests/test_older_runs.py reads the runs of all schemas. Each has most kinds of files: labels,
# duplicates, a skipped file, a round, names, a moved image, an added image, an evaluation. Its weights are nearly all 0,
# so that model.safetensors.gz is small. Paths of this folder are stored as /stored.
set -euo pipefail
cd "$(dirname "$0")"
run=schema-$1
test ! -e "$run"
export OMP_NUM_THREADS=1
work=$(mktemp -d)
python - "$work" <<'PYTHON'
import sys
from pathlib import Path
import torch
from PIL import Image
from safetensors.torch import save_file
from deepcluster.nets.network import build
for kind, (r, g, b) in {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}.items():
    for i in range(7):  # the last one is added later
        path = Path("photos" if i < 6 else "added", kind, f"{i}.png")
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (r * (255 - 12 * i) + 5 * i, g * (250 - 12 * i) + 5 * i, b * 240 + i)).save(path)
Path("photos/broken.png").touch()
weights = build("compact", image_size=16, seed=0).body.state_dict()
for name, value in weights.items():
    if value.ndim == 4:  # a convolution that passes colours on
        inputs = value.shape[1]
        weights[name] = torch.zeros_like(value)
        for channel in range(len(value)):
            weights[name][channel, channel % inputs, 1, 1] = -1 if inputs == 3 and channel % 2 else 1
save_file(weights, Path(sys.argv[1], "weights.safetensors"))
PYTHON
deepcluster() { python -m deepcluster "$@" --quiet; }
deepcluster fit photos -o "$run" -k 3 --labels folders --backbone compact --weights "$work/weights.safetensors" \
  --image-size 16 --rounds 1 --epochs 1 --batch-size 16 --pseudo-labels 6 --seed 5 --precision fp32 --set average=0
cut=$(grep -o '"cut": "[^"]*"' "$run/run.json")
echo "{\"schema_version\": 1, $cut, \"names\": {\"0\": \"first\"}, \"junk\": [2], \"move\": [[\"red/0.png\", 0]]}" > "$work/edits.json"
deepcluster apply "$run" "$work/edits.json"
deepcluster update "$run" added
deepcluster evaluate "$run" --labels folders > "$work/figures"
gzip -9 -n "$run/model/model.safetensors"
rm -r "$run/report.html" "$run/log.txt" "$run/.deepcluster"
sed -i "s|$PWD|/stored|g; s|$work|/stored|g" "$run"/*.{json,csv,toml}
rm -r "$work"
