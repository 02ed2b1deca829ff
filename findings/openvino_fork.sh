#!/usr/bin/env bash
# A process that has opened an OpenVINO network cannot make children by fork that let go of it.
#
# Expected: a child that never uses the network, but collects its garbage or ends, as any Python process does, ends well.
# What happens: deleting the network in the child ends it with a segmentation fault (status 11), or it waits for ever for
#   threads that only the parent has. The same happens when the child ends by `sys.exit`, which deletes everything.
# Why it matters: PyTorch's DataLoader and multiprocessing make such children on Linux, and the error names neither.
#   Keep a reference in the child that is never given up (`os.register_at_fork`, `ctypes.pythonapi.Py_IncRef`).
# Source: the destructors of the CPU plugin's streams join the threads of the parent.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet openvino==2026.4.1 numpy==2.4.6
"$work/venv/bin/python" - <<'PYTHON'
import ctypes
import gc
import os
import signal

import numpy as np
import openvino as ov
from openvino import opset13 as ops

print("openvino", ov.__version__)


def opened():
    images = ops.parameter([1, 8, 32, 32], np.float32)
    weights = ops.constant(np.ones((8, 8, 3, 3), np.float32))
    model = ov.Model([ops.convolution(images, weights, [1, 1], [1, 1], [1, 1], [1, 1])], [images])
    network = ov.Core().compile_model(model, "CPU", {"NUM_STREAMS": 2, "INFERENCE_NUM_THREADS": 2})
    network({0: np.zeros((1, 8, 32, 32), np.float32)})
    return network


def status_of_child(keep):
    networks = [opened(), opened()]
    child = os.fork()
    if not child:
        signal.alarm(20)  # ends a child that waits for ever, with status 14
        if keep:
            for network in networks:
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(network))
        networks.clear()
        gc.collect()
        os._exit(0)
    return os.waitpid(child, 0)[1] & 127


plain, kept = status_of_child(False), status_of_child(True)
print(f"signal that ended the child: {plain}; with references that are never given up: {kept}")
assert plain in (signal.SIGSEGV, signal.SIGALRM, signal.SIGABRT) and kept == 0, "behaviour changed"
PYTHON
