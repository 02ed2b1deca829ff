"""Commands that maintain run folders: doctor."""

from tagseg.cli.app import MAINTENANCE, RunFolder, command, say
from tagseg.system.progress import bars


@command(MAINTENANCE, 0)
def doctor(run: RunFolder, /) -> None:
    """Check the files of a run folder for damage, by their checksums.

    Prints which files are damaged or missing and what to do. Changes nothing. The exit status is 1 if something is
    damaged.

        tagseg doctor runs/a
    """
    from tagseg.run.doctor import examine

    found = examine(run, bars)
    for line in found.lines():
        say(line)
    if found.damage:
        raise SystemExit(1)
