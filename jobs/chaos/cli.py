"""``streamscore chaos``: a job's stack on this machine is hurt, and what it wrote is judged."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.exit_codes import ExitCode
from jobs.options import ConfigFile, Overrides, changes_of, loaded

if TYPE_CHECKING:
    from jobs.chaos.run import Options, Outcome


def chaos(
    conf: ConfigFile,
    faults: Annotated[
        str, typer.Option(help="Kinds with commas between, or all; --list shows them.")
    ] = "all",
    minutes: Annotated[float, typer.Option(min=0.1, help="No fault begins later.")] = 10.0,
    count: Annotated[int, typer.Option(min=0, help="No more faults than that; 0: no limit.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the faults and the events.")] = 1,
    rate: Annotated[float, typer.Option(min=1, help="Events a second.")] = 500.0,
    taskmanagers: Annotated[
        int, typer.Option(min=1, help="How many TaskManagers, of two slots each.")
    ] = 2,
    brokers: Annotated[
        int, typer.Option(min=1, help="Each has a replica of everything; 3 for move-leader.")
    ] = 1,
    folder: Annotated[
        Path | None,
        typer.Option(help="All files of the run; default: build/chaos.", metavar="DIR"),
    ] = None,
    overrides: Overrides = None,
    list_: Annotated[
        bool, typer.Option("--list", help="Only show the kinds of faults there are.")
    ] = False,
) -> None:
    """Hurt a job's stack on this machine again and again, and account for every record.

    Starts a broker, a model server, a Flink cluster with ZooKeeper and the job of CONF, all of its
    own and at loopback only, and writes events with ids 0, 1, 2 ... to it. Then faults, one after
    the other, in an order and of a length drawn from the seed. At the end every id must have its
    prediction, every poisoned record its dead letter, and every feature the value that a
    recomputation from the topics gives. Exit code 1 if not, or if the job did not recover.

    The recovery time is counted from the end of a fault (a kill ends at once: what was killed is
    started again) until every task runs and then the model has scored a newer event of each
    partition.

    Example: streamscore chaos conf/fraud.yaml --faults kill-taskmanager,cut-broker --minutes 5
    """
    from jobs.chaos.faults import KINDS, chosen
    from jobs.chaos.run import Options
    from jobs.chaos.stack import CHAOS
    from jobs.console import console, facts_table

    if list_:
        console.print(facts_table("faults", {name: kind.about for name, kind in KINDS.items()}))
        return
    try:
        kinds = chosen(faults)
    except ValueError as exc:
        raise typer.BadParameter(str(exc), param_hint="--faults") from exc
    loaded(conf, overrides)
    options = Options(
        conf,
        changes_of(overrides),
        kinds,
        minutes,
        count=count,
        seed=seed,
        rate=rate,
        task_managers=taskmanagers,
        brokers=brokers,
        folder=folder or CHAOS,
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    outcome = _outcome_of(options)
    _tell(outcome, options.folder)
    raise typer.Exit(ExitCode.OK if outcome.is_good else ExitCode.FAILED)


def _outcome_of(options: Options) -> Outcome:
    from jobs.chaos.run import run
    from jobs.chaos.writer import WriterError
    from jobs.console import console
    from jobs.features.topics import TopicError
    from jobs.flink_rest import JobError

    try:
        return run(options, lambda text: console.print(text, highlight=False))
    except (JobError, TopicError, WriterError) as exc:
        typer.echo(f"failed: {exc}; the logs are in {options.folder}", err=True)
        raise typer.Exit(ExitCode.FAILED) from exc
    except KeyboardInterrupt:
        typer.echo("stopped: all that was broken is healed, all that ran is ended", err=True)
        raise typer.Exit(ExitCode.FAILED) from None


def _tell(outcome: Outcome, folder: Path) -> None:
    from jobs.chaos import report
    from jobs.console import console, facts_table

    as_json, as_html = report.write(outcome, folder)
    console.print(facts_table("chaos", report.summary(outcome)))
    console.print(f"written to {as_json} and {as_html}", soft_wrap=True)
