#!/usr/bin/env bash
# msgspec writes a NaN in a `float` field as null, and then refuses to read its own file into the same type.
#
# Expected: a typed record that can be encoded can be decoded into its type; otherwise NaN is refused on writing, where
#   the cause can be seen. Python's json writes NaN and reads it back.
# What happens: `msgspec.json.encode` turns NaN and both infinities into null. `decode` into the same struct fails
#   with "Expected `float`, got `null`", in another process and maybe days later.
# Why it matters: the IoU of a class that no image contains is 0/0. One absent class makes the file of
#   scores unreadable to the code that wrote it, and a best score that starts at -inf is lost. Declare such a field
#   `float | None`, or check for finite values before writing.
# Source: msgspec's documentation, "Supported types" (nan and inf encode as null).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet msgspec==0.22.0
"$work/venv/bin/python" - <<'PYTHON'
import msgspec


class Scores(msgspec.Struct):
    iou: dict[str, float]
    best: float


print("msgspec", msgspec.__version__)
written = msgspec.json.encode(Scores({"cat": 0.5, "unicorn": float("nan")}, best=float("-inf")))
print("written", written.decode())
assert written == b'{"iou":{"cat":0.5,"unicorn":null},"best":null}', "behaviour changed"
try:
    msgspec.json.decode(written, type=Scores)
except msgspec.ValidationError as error:
    print("read back:", error)
else:
    raise SystemExit("behaviour changed: the record can be read")
PYTHON
