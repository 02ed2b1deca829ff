#!/usr/bin/env bash
# torch.set_num_threads in a Python thread leaves that thread's callers as they are, and changes threads that start later.
#
# Expected: a number of threads that is global, as its documentation reads, or one that belongs to the thread that sets it.
# What happens: both by halves. A thread that sets 1 computes with 1; the main thread, which has computed already, keeps its
#   number; a thread that computes for the first time afterwards gets 1 without having asked for it.
# Why it matters: a pool of threads that compute side by side must set the number in each of them, and restore it in the main
#   thread afterwards, or later pools of the same process compute on one core.
# Source: aten/src/ATen/ParallelOpenMP.cpp (omp_set_num_threads acts on the calling thread; the stored value is what a new
#   thread starts with).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$work/venv/bin/python" - <<'PYTHON'
import threading

import torch

print("torch", torch.__version__)
seen = {}


def in_thread(name, number=None):
    def work():
        if number:
            torch.set_num_threads(number)
        torch.ones(1000, 1000) @ torch.ones(1000, 1000)
        seen[name] = torch.get_num_threads()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


torch.set_num_threads(3)
torch.ones(1000, 1000) @ torch.ones(1000, 1000)
seen["main, before"] = torch.get_num_threads()
in_thread("a thread that sets 1", 1)
seen["main, after"] = torch.get_num_threads()
in_thread("a later thread that sets nothing")
for name, number in seen.items():
    print(f"{name}: {number}")
assert list(seen.values()) == [3, 1, 3, 1], "behaviour changed"
PYTHON
