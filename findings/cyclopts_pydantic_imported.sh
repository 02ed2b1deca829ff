#!/usr/bin/env bash
# Whether a cyclopts program enforces the bounds of its annotations depends on an import elsewhere.
#
# Expected: `Annotated[int, annotated_types.Ge(64)]` is either a bound of the flag, or documentation that the program
#   checks by itself; the same command line is accepted or refused whatever else the process has imported.
# What happens: cyclopts ignores such bounds, until any package of the process has imported pydantic: then every
#   annotated flag is checked by pydantic too, in its words and with a link to its pages. pydantic is no dependency of
#   cyclopts; Ray, spaCy, FastAPI and many others import it. Metadata of one's own that widens a bound is ignored.
# Why it matters: a value that the program takes, and its tests accept, is refused where a plug-in or another extra is
#   installed; and bounds that seem to work in such an environment do not exist in a plain one.
#   Check bounds by oneself; metadata of one's own can join in with `__get_pydantic_core_schema__`.
# Source: `Argument.validate` looks for pydantic in `sys.modules`.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet cyclopts==5.5.2 annotated-types pydantic==2.14.4
cat > "$work/program.py" <<'PYTHON'
import sys
from typing import Annotated

from annotated_types import Ge
from cyclopts import App

if sys.argv.pop(1) == "imported":
    import pydantic

app = App(result_action="return_value")


@app.default
def resize(*, side: Annotated[int, Ge(64)] = 512) -> None:
    print("side", side)


app(sys.argv[1:])
PYTHON
"$work/venv/bin/pip" list 2>/dev/null | grep -i "^cyclopts \|^pydantic "
plain=$("$work/venv/bin/python" "$work/program.py" plain --side 0)
echo "without pydantic imported: $plain"
test "$plain" = "side 0"
if said=$("$work/venv/bin/python" "$work/program.py" imported --side 0 2>&1); then
    echo "the bound was not enforced: $said"
    exit 1
fi
echo "with pydantic imported:"
echo "$said"
grep -q "greater than or equal to 64" <<< "$said"
echo "The same command line is accepted or refused, depending on whether pydantic was imported."
