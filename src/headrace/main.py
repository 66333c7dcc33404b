"""The command ``headrace``. Each command parses, calls, prints; what it calls is in ``flows/``, ``engine/`` and
``profiling/``.
"""

from __future__ import annotations

import json
import signal
import sys
from datetime import datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from engine.errors import HeadraceError
from engine.units import parse_duration, parse_time
from headrace import show
from headrace.calling import call_flow, held_memory, read_pipeline

app = typer.Typer(
    name="headrace",
    help="Keeps a model trained, deployed and watched on data that does not fit in memory.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
profile_app = typer.Typer(help="Record and read the memory of runs.", no_args_is_help=True)
app.add_typer(profile_app, name="profile")

# The base of typer's usage errors, wherever typer keeps its click.
_UsageError: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

Pipeline = Annotated[Path, typer.Argument(help="The pipeline file, such as pipelines/flights.yaml.")]
AsOf = Annotated[
    datetime | None,
    typer.Option("--as-of", parser=parse_time, metavar="TIME", help="The run's clock, ISO 8601, UTC. Default: now."),
]
Memory = Annotated[str | None, typer.Option(help="Budget of this run, such as 512MiB. Default: the pipeline file's.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


@app.command()
def run(
    pipeline: Pipeline,
    as_of: AsOf = None,
    memory: Memory = None,
    retrain: Annotated[str, typer.Option(help="auto, always or never.")] = "auto",
    as_json: Json = False,
) -> None:
    """Run the whole loop once: extract, prepare, score, monitor; train, validate and promote where that is due."""
    report = call_flow(
        "continuous_training", pipeline=pipeline, as_of=as_of, memory=memory, retrain=retrain, quiet=as_json
    )
    show.loop(report, as_json=as_json)


@app.command()
def extract(
    pipeline: Pipeline,
    as_of: AsOf = None,
    since: Annotated[
        datetime | None,
        typer.Option("--from", parser=parse_time, metavar="TIME", help="Backfill: read again from this cursor on."),
    ] = None,
    until: Annotated[
        datetime | None, typer.Option("--to", parser=parse_time, metavar="TIME", help="Backfill: up to this cursor.")
    ] = None,
    what: Annotated[str, typer.Option("--table", help="raw, labels or all.")] = "all",
    memory: Memory = None,
    as_json: Json = False,
) -> None:
    """Extract new rows and label records; with --from or --to what is missing of a stretch that was read before."""
    _require_one_of(what, ("all", "raw", "labels"), option="--table")
    if since is not None and until is not None and since > until:
        raise HeadraceError("--from is later than --to", hint="nothing lies between them: exchange them")
    report = call_flow(
        "extract",
        pipeline=pipeline,
        as_of=as_of,
        since=since,
        until=until,
        what=what,
        memory=memory,
        quiet=as_json,
    )
    show.loop(report, as_json=as_json)


@app.command()
def quarantine(
    pipeline: Pipeline,
    replay: Annotated[
        bool, typer.Option("--replay", help="Read these rows of the source again; what fits by now comes in.")
    ] = False,
    what: Annotated[str, typer.Option("--table", help="raw, labels or all.")] = "all",
    limit: Annotated[int, typer.Option(min=0, help="How many rows to show.")] = 20,
    memory: Memory = None,
    as_json: Json = False,
) -> None:
    """Show the rows that did not fit, by reason; with --replay try them again."""
    from engine.batching import Workspace
    from engine.quarantine import quarantined

    _require_one_of(what, ("all", "raw", "labels"), option="--table")
    if replay:
        call_flow("replay", pipeline=pipeline, what=what, memory=memory, quiet=as_json)
    workspace = Workspace(read_pipeline(pipeline).workspace)
    found = quarantined(workspace, table=None if what == "all" else what, limit=limit)
    show.quarantine(found, pipeline=pipeline, as_json=as_json)


@app.command()
def vacuum(
    pipeline: Pipeline,
    keep: Annotated[
        timedelta,
        typer.Option(parser=parse_duration, metavar="AGE", help="Delete only what is older, such as 12h or 7d."),
    ] = timedelta(days=7),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be deleted; change nothing.")] = False,
    memory: Memory = None,
    as_json: Json = False,
) -> None:
    """Merge small chunks, cut the tables' logs, and delete old chunks and what killed runs left."""
    from engine.stage import StageContext
    from engine.vacuum import vacuum as clean

    spec = read_pipeline(pipeline)
    context = StageContext.of(spec if memory is None else spec.with_memory(memory), directory=pipeline.parent)
    with context.workspace.lock(), held_memory(context.budget.allowed_bytes):
        show.vacuum(clean(context, keep=keep, dry_run=dry_run), as_json=as_json)


@app.command()
def train(
    pipeline: Pipeline,
    as_of: AsOf = None,
    memory: Memory = None,
    retrain: Annotated[str, typer.Option(help="auto, always or never.")] = "always",
    as_json: Json = False,
) -> None:
    """Train a candidate, validate it, and promote it if it passes the gate."""
    report = call_flow("train", pipeline=pipeline, as_of=as_of, memory=memory, retrain=retrain, quiet=as_json)
    show.loop(report, as_json=as_json)


@app.command()
def score(pipeline: Pipeline, as_of: AsOf = None, memory: Memory = None, as_json: Json = False) -> None:
    """Extract, prepare and score new rows with the champion."""
    show.loop(call_flow("score", pipeline=pipeline, as_of=as_of, memory=memory, quiet=as_json), as_json=as_json)


@app.command()
def monitor(pipeline: Pipeline, as_of: AsOf = None, memory: Memory = None, as_json: Json = False) -> None:
    """Measure what predictions were worth, and drift."""
    show.loop(call_flow("monitor", pipeline=pipeline, as_of=as_of, memory=memory, quiet=as_json), as_json=as_json)


@app.command()
def rollback(
    pipeline: Pipeline,
    version: Annotated[int | None, typer.Option(help="Default: the champion before today's.")] = None,
    reason: Annotated[str, typer.Option(help="Kept in the ledger.")] = "",
    as_json: Json = False,
) -> None:
    """Make an earlier champion the champion again."""
    report = call_flow("rollback", pipeline=pipeline, version=version, reason=reason, quiet=as_json)
    show.loop(report, as_json=as_json)


@app.command()
def status(pipeline: Pipeline, as_json: Json = False) -> None:
    """Show the champion, the tables and the last report of each stage."""
    from engine.status import status as read_status

    show.status(read_status(read_pipeline(pipeline)), as_json=as_json)


@app.command()
def lookup(
    pipeline: Pipeline,
    row: Annotated[str | None, typer.Argument(help="A row as JSON, or - for JSON lines on standard input.")] = None,
    key: Annotated[str | None, typer.Option(help="Instead of a row: the key of one that is extracted.")] = None,
    as_json: Json = False,
) -> None:
    """Show the features of one row as prepare would write them, and the champion's score; writes nothing."""
    from headrace.lookup import looked_up

    if (row is None) == (key is None):
        raise typer.BadParameter("give a row, or --key", param_hint="ROW")
    for found in looked_up(pipeline, row=row, key=key):
        show.lookup(found, as_json=as_json)


@app.command()
def plan(pipeline: Pipeline, as_of: AsOf = None, memory: Memory = None, as_json: Json = False) -> None:
    """Show what each stage would take under the budget; runs nothing. Exit code 2 when it does not fit."""
    from engine.planning import plan as lay_out
    from engine.stage import StageContext

    spec = read_pipeline(pipeline)
    if memory is not None:
        spec = spec.with_memory(memory)
    context = StageContext.of(spec, directory=pipeline.parent, as_of=as_of)
    found = lay_out(context)
    show.plan(found, as_json=as_json)
    if not found["fits"]:
        raise typer.Exit(2)


@app.command()
def history(pipeline: Pipeline, as_json: Json = False) -> None:
    """Show the ledger: each candidate, verdict, promotion and rollback, with its reasons."""
    from engine.batching import Workspace
    from engine.ledger import Ledger

    show.history(Ledger(Workspace(read_pipeline(pipeline).workspace)).history(), as_json=as_json)


@app.command()
def check(pipeline: Pipeline, as_json: Json = False) -> None:
    """Check the pipeline file, reach its source, and warn of leaks. Exit code 2 when there is an error."""
    from engine.features.transform import transform_of
    from engine.sources.check import check_pipeline

    spec = read_pipeline(pipeline)
    transform = transform_of(spec, directory=pipeline.parent) if spec.features.transform else None
    findings = check_pipeline(spec, directory=pipeline.parent, transform=transform)
    show.findings(pipeline, findings, as_json=as_json)
    if any(finding.severity == "error" for finding in findings):
        raise typer.Exit(2)


@app.command()
def init(
    source: Annotated[
        str, typer.Argument(help="URI::table, such as sqlite:///operations.db::flights, or files: data/*.parquet.")
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Default: standard output.")] = None,
) -> None:
    """Write a first pipeline file from the schema of a table or of files."""
    from engine.sources.draft import draft_from

    text = draft_from(source)
    if output is None:
        typer.echo(text, nl=False)
        return
    if output.exists():
        raise HeadraceError(f"{output} exists", hint="choose another --output, or move the file away")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text)
    typer.echo(f"wrote {output}; next: headrace check {output}")


@app.command()
def demo(
    home: Annotated[
        Path | None, typer.Option(help="Where everything goes. Default: HEADRACE_HOME or .headrace.")
    ] = None,
    windows: Annotated[bool, typer.Option(help="Leave the windows out, to see what they are worth.")] = True,
    memory: Memory = None,
) -> None:
    """Replay 2013 month by month on real flights: the whole loop under a budget."""
    from headrace.demo import run_demo

    run_demo(home=home, windows=windows, memory=memory)


@app.command()
def up(
    port: Annotated[int, typer.Option(help="Of the Prefect server, on loopback.")] = 4200,
) -> None:
    """Start a Prefect server and a worker on loopback and deploy prefect.yaml. Ctrl-C stops them."""
    from headrace.up import run_up

    run_up(port=port)


@app.command()
def deploy() -> None:
    """Deploy prefect.yaml to the server of PREFECT_API_URL, with its work pool and the limit on memory."""
    from headrace.up import run_deploy

    run_deploy()


@profile_app.command("run")
def profile_run(
    pipeline: Pipeline,
    stage: Annotated[str, typer.Option(help="extract, prepare, train, validate, score or monitor.")],
    as_of: AsOf = None,
    memory: Memory = None,
    as_json: Json = False,
) -> None:
    """Run a stage under memray in its cage; write the flame graph and one page with the timeline."""
    from headrace.profiling_run import profile_stage

    show.profile(profile_stage(pipeline, stage=stage, as_of=as_of, memory=memory), as_json=as_json)


@profile_app.command("compare")
def profile_compare(
    before: Annotated[Path, typer.Argument(help="A recording: its directory under <workspace>/profiles.")],
    after: Annotated[Path, typer.Argument(help="Another one.")],
    as_json: Json = False,
) -> None:
    """Show two recordings side by side: peak and seconds by task."""
    from profiling.comparison import compare
    from profiling.recorder import read_recording

    for path in (before, after):
        if not path.exists():
            raise HeadraceError(f"there is no recording {path}", hint="headrace profile run makes one")
    show.comparison(compare(read_recording(before), read_recording(after)), as_json=as_json)


@profile_app.command("leaks")
def profile_leaks(
    capture: Annotated[Path, typer.Argument(help="A memray capture, *.bin, of a profile.")], as_json: Json = False
) -> None:
    """Show what a task never gave back, by place in the code, largest first."""
    from profiling.leaks import leaks

    if not capture.exists():
        raise HeadraceError(f"there is no capture {capture}", hint="headrace profile run says where its captures are")
    show.leaks(leaks(capture), as_json=as_json)


def _require_one_of(value: str, allowed: tuple[str, ...], *, option: str) -> None:
    if value not in allowed:
        raise typer.BadParameter(f"{value!r} is none of {', '.join(allowed)}", param_hint=option)


_INTERRUPTED = 128 + signal.SIGINT
_signals: list[int] = []


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Take SIGTERM for Ctrl-C: all that a run has started is ended before the command is. A second one changes nothing
    about that, since what is interrupted while it ends leaves something behind; a third one does.
    """
    del frame
    _signals.append(number)
    if len(_signals) != 2:
        raise KeyboardInterrupt


def main() -> None:
    """Run the command line; an error of our tree is one message and its exit code, never a traceback."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as a shell starts what runs behind it
            signal.signal(number, _interrupt)
    try:
        code = app(standalone_mode=False)  # a typer.Exit comes back as its code
    except HeadraceError as error:
        if "--json" in sys.argv:
            typer.echo(json.dumps(error.to_json()))
        show.error(error)
        sys.exit(error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        code = _INTERRUPTED
    except _UsageError as error:
        error.show()
        code = int(error.exit_code)
    if code == _INTERRUPTED:  # also as what typer makes of it
        typer.echo("interrupted: what was committed stays; run again to go on", err=True)
        code = 128 + (_signals[0] if _signals else signal.SIGINT)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
