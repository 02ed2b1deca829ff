#!/usr/bin/env bash
# Importing torchvision, or timm, loads PyTorch's compiler, whether or not anything is compiled.
#
# Expected: torch loads torch._dynamo and torch._inductor when something is compiled, as `import torch` alone does.
# What happens: torchvision's operator roi_align takes one function from torch._dynamo.utils at its import, and timm imports
#   torchvision for its feature extraction. A thousand and more modules follow, about a third of the time of `import timm`.
# Why it matters: a command line that only reads an image classifier's weights starts seconds later on a slow CPU, and so does
#   every worker process that it spawns; import what needs timm only where it is used.
# Source: torchvision/ops/roi_align.py, timm/layers/_fx.py.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.15.0 torchvision==0.29.2 timm==1.0.31 numpy==2.4.6
"$work/venv/bin/python" -c "import timm"  # compiles all modules, which is not to be measured
"$work/venv/bin/python" - <<'PYTHON'
import sys
import time

COMPILER = ("torch._dynamo", "torch._inductor")


def loaded(title):
    ours = [name for name in sys.modules if name.startswith(COMPILER)]
    print(f"{title}: {len(sys.modules)} modules, {len(ours)} of them the compiler's")
    return len(ours)


started = time.process_time()
import torch

plain = loaded(f"torch {torch.__version__}")
torch_s = time.process_time() - started
import torchvision

after = loaded(f"torchvision {torchvision.__version__}")
vision_s = time.process_time() - started - torch_s
import timm

loaded(f"timm {timm.__version__}")
print(f"torch {torch_s:.1f} CPU s, torchvision {vision_s:.1f} more, timm {time.process_time() - started - torch_s - vision_s:.1f} more")
assert plain == 0 and after > 100, "behaviour changed"
PYTHON
