"""The command that teaches the memory bank: tagseg teach."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from tagseg.cli.app import CHECK, RunFolder, command, say
from tagseg.cli.review import page_opener
from tagseg.settings.bounds import Port
from tagseg.system.progress import bars

if TYPE_CHECKING:
    from tagseg.run.folder import Run
    from tagseg.teaching.lesson import Lesson


@command(CHECK, 1)
def teach(
    run: RunFolder,
    /,
    *,
    terminal: Annotated[bool, Parameter(negative=(), help="Ask in the terminal instead of the browser.")] = False,
    export: Annotated[Path | None, Parameter(help="Write all answers to this JSON file.", show_default=False)] = None,
    import_file: Annotated[
        Path | None,
        Parameter(name="--import", help="Add the answers of a file that --export wrote.", show_default=False),
    ] = None,
    apply: Annotated[
        bool, Parameter(negative=(), help="Make maps and masks again by all answers, without asking anything.")
    ] = False,
    port: Annotated[Port, Parameter(help="Port to listen on (0: any free one).")] = 0,
    browser: Annotated[bool, Parameter(negative="--no-browser", help="Open the page in the browser.")] = True,
) -> None:
    """Name regions that look alike: an answer mends many masks.

    Shows regions that look alike, those first whose name is expected to change most. Each answer is written into the
    run folder at once and enters the memory bank. At the end, maps and masks follow, and the next tagseg fit trains the
    segmentation network on them. Needs a run made with --quality fast or balanced.

        tagseg teach runs/a
        tagseg teach runs/a --terminal
        tagseg teach runs/a --export answers.json
        tagseg teach runs/b --import answers.json --apply
    """
    from tagseg.run.folder import Run
    from tagseg.run.taught import export_answers
    from tagseg.teaching.apply import require_frozen

    opened = Run(run)
    require_frozen(opened)
    if import_file is not None:
        say(f"{_import(opened, import_file)} new answers from {import_file}")
    if export is not None:
        say(f"{export_answers(opened, export)} answers: {export}")
    if apply:
        _apply(opened)
    if import_file is not None or export is not None or apply:
        return
    if terminal:
        _ask(opened)
        _apply(opened)
        return
    from tagseg.teaching.server import serve_lesson

    serve_lesson(opened, port, page_opener("Teach", "answers", browser), bars)
    say(f"Stopped. Make the masks again: tagseg teach {run} --apply")


def _import(run: "Run", path: Path) -> int:
    from tagseg.data.prepare import prepare
    from tagseg.run.taught import import_answers

    dataset = prepare(run, bars).dataset
    return import_answers(run, path, [sample.id for sample in dataset.split("train")], dataset.classes)


def _apply(run: "Run") -> None:
    from tagseg.data.prepare import prepare
    from tagseg.run.lock import hold_lock
    from tagseg.teaching.apply import apply_answers

    with hold_lock(run.root):
        changed = apply_answers(prepare(run, bars), run, bars)
    say(f"{len(changed)} masks made again.")
    again = f"tagseg fit {shlex.quote(run.manifest().data)} --out {shlex.quote(str(run.root))}"
    if run.is_outdated():
        say(
            "The segmentation network is older than these masks, and so are the masks of self-training if the run has "
            f"any: pages and exports show these masks until it has learned from them. Next: {again}"
        )
    elif changed:
        say(f"Next, the segmentation network: {again}")


def _ask(run: "Run") -> None:
    from tagseg.teaching.lesson import open_lesson

    lesson = open_lesson(run, bars)
    say("Classes: " + ", ".join(f"{number} {name}" for number, name in enumerate(lesson.classes, 1)))
    while _ask_once(lesson):
        pass


def _ask_once(lesson: "Lesson") -> bool:
    """Ask about the best question and learn from the reply; return whether to go on."""
    from tagseg.report.overlay import encoded
    from tagseg.system.files import write_output
    from tagseg.teaching.lesson import answered, name_cluster, news_of, next_questions, take_back
    from tagseg.teaching.pictures import draw_sheet
    from tagseg.teaching.teach import CLUSTER_CROPS, shapes_of
    from tagseg.teaching.terminal import HELP, question_text, reply, summary

    found = next_questions(lesson)
    if not found:
        say("Every cluster is named.")
        return False
    sheet = draw_sheet(lesson, shapes_of(lesson, found[0].key)[:CLUSTER_CROPS], found[0].tag)
    lesson.run.review.mkdir(exist_ok=True)
    picture = lesson.run.review / "question.jpg"
    write_output(picture, encoded(sheet, "jpeg", quality=88))
    say(f"\n{question_text(lesson, found[0])}\n  picture: {picture}")
    try:
        line = input(f"What is it? ({HELP}) ")
    except EOFError:
        return False
    if line.strip() == "q":
        return False
    try:
        if line.strip() == "u":
            last = answered(lesson)[:1]
            say("Nothing to undo." if not last else f"Undone: {summary(last[0][1])}")
            if last:
                say(str(take_back(lesson, last[0][0]).change))
        else:
            done = name_cluster(lesson, found[0].key, *reply(line, lesson))
            say(f"{summary(done.answer)}; {news_of(lesson, done.change)}")
    except ValueError as error:
        say(str(error))
    return True
