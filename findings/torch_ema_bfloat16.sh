#!/usr/bin/env bash
# PyTorch's moving average of weights stands still when the weights are bfloat16.
#
# Expected: `AveragedModel` with a decay of 0.999 reaches 1 - 0.999^2000 = 0.86 after 2,000 steps from weights of 0 towards
#   weights of 1, with a rounding error of a percent in bfloat16; or it keeps its average in float32.
# What happens: the average has the weights' own type. A step adds a thousandth of the difference, which at 0.25 is less
#   than half the distance between neighbouring bfloat16 numbers, so the sum is rounded back and the average stays at 0.25.
# Why it matters: a network that is cast to bfloat16 to save memory trains, and its average, the one that is evaluated and
#   saved, lags far behind without a warning. Keep the average in float32.
# Source: torch/optim/swa_utils.py, get_ema_multi_avg_fn (torch._foreach_lerp_ on the parameters as they are).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$work/venv/bin/python" - <<'PYTHON'
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

print("torch", torch.__version__)


def average(dtype):
    model = torch.nn.Linear(1, 1, bias=False).to(dtype)
    model.weight.data.zero_()
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))
    averaged.update_parameters(model)  # the first call copies the weights
    model.weight.data.fill_(1.0)
    for _ in range(2000):
        averaged.update_parameters(model)
    return averaged.module.weight.item()


full, half = average(torch.float32), average(torch.bfloat16)
print(f"after 2,000 steps: float32 {full:.2f}, bfloat16 {half:.2f}")
assert 0.85 < full < 0.88, "float32 changed"
assert half < 0.5, "behaviour changed"
PYTHON
