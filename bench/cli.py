"""The commands of ``python -m bench``."""

from __future__ import annotations

import asyncio
import math
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
import uvloop
from rich.console import Console
from rich.table import Table

from bench import comparison, peer_rows, results, runner, tables
from bench.options import Options, Rate, parse_numbers
from bench.peers import known
from bench.results import OURS, FormatError, Results
from bench.runner import Job
from bench.scenarios import SCENARIOS

RESULTS = Path(__file__).parent / "results"
WIDTH_WITHOUT_TERMINAL = 170
#: A terminal that is narrower gets fewer columns.
WIDTH_OF_ALL = 140
EXIT_REGRESSION = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Measure ActorGrid, and systems like it, on this machine.")

StoreOption = Annotated[bool, typer.Option("--store", help="keep the results under bench/results, and compare with the last ones there")]
JsonOption = Annotated[Path | None, typer.Option("--json", help="write the results there")]
PeersOption = Annotated[str, typer.Option(help="other systems in the same run: names separated by commas, all, none")]
OutOption = Annotated[Path | None, typer.Option("--out", help="also make the report page, in that directory")]


@app.callback()
def main() -> None:
    """Measure ActorGrid, and systems like it, on this machine."""


@app.command()
def run(
    scenarios: Annotated[list[str], typer.Argument(help="see `list`", show_default=False)],
    duration: Annotated[float, typer.Option(help="seconds of each run of each row", min=0.1)] = 5.0,
    warm_up: Annotated[float, typer.Option(help="seconds before the first run of each row", min=0.0)] = 1.0,
    runs: Annotated[int, typer.Option(help="of each row; figures are medians", min=1, max=100)] = 1,
    concurrency: Annotated[str, typer.Option(help="calls in flight, separated by commas")] = "1,64,1024",
    rate: Annotated[str, typer.Option(help="open loops after the closed ones: calls/s, or a part of the peak: 20000, 50%")] = "",
    hosts: Annotated[int, typer.Option(min=1, max=64)] = 3,
    partitions: Annotated[str, typer.Option(help="the scenario partitions takes them all, the others the first")] = "",
    replicas: Annotated[str, typer.Option(help="replica set sizes, separated by commas")] = "3",
    payload: Annotated[int, typer.Option(help="bytes in each write, and in each answer to a read", min=0, max=8_000_000)] = 0,
    actors: Annotated[int | None, typer.Option(help="actors called in turn; default: what fits the scenario", min=1)] = None,
    peers: PeersOption = "none",
    json_file: JsonOption = None,
    store: StoreOption = False,
    out: OutOption = None,
) -> None:
    """Run scenarios against a fresh local grid, and print tables."""
    unknown = [name for name in scenarios if name not in SCENARIOS]
    if unknown:
        _wrong(f"no scenario {', '.join(unknown)}; known are {', '.join(SCENARIOS)}")
    try:
        options = Options(
            duration_s=duration,
            warm_up_s=warm_up,
            runs=runs,
            concurrency=parse_numbers(concurrency, high=100_000),
            rates=tuple(Rate.parse(each) for each in rate.split(",")) if rate else (),
            hosts=hosts,
            partitions=parse_numbers(partitions or "64", high=65_536),
            partitions_given=bool(partitions),
            replicas=parse_numbers(replicas, high=9),
            payload_bytes=payload,
            actors=actors,
        )
        chosen = tuple(peer_rows.choose(peers))
    except ValueError as error:
        _wrong(str(error))
    _measure([Job(tuple(dict.fromkeys(scenarios)), options, chosen)], json_file=json_file, store=store, out=out)


@app.command()
def suite(
    peers: PeersOption = "all",
    json_file: JsonOption = None,
    store: Annotated[bool, typer.Option(help="keep the results under bench/results, and compare with the last ones there")] = True,
    out: OutOption = Path("bench-report"),
    minutes: Annotated[float, typer.Option(help="nothing is begun after so long; what is left out is said", min=0.1)] = 9.5,
    quick: Annotated[bool, typer.Option("--quick", help="calls only, no faults, no peers: under two minutes")] = False,
) -> None:
    """The standard run behind `make bench`: most scenarios and all peers, in under ten minutes on two cores."""
    from bench.suite import quick_jobs, standard_jobs

    try:
        chosen = tuple(peer_rows.choose(peers))
    except ValueError as error:
        _wrong(str(error))
    jobs = quick_jobs() if quick else standard_jobs(chosen)
    _measure(jobs, json_file=json_file, store=store, out=out, budget_s=minutes * 60)


@app.command("list")
def list_command() -> None:
    """Scenarios and peers, one line each."""
    out = _console()
    table = Table("scenario", "what", box=None)
    for scenario in SCENARIOS.values():
        table.add_row(scenario.name, scenario.what)
    out.print(table)
    out.print()
    table = Table("peer", "what a call is", "what an answer promises", box=None)
    for name, make in known().items():
        peer = make()
        table.add_row(name, f"{', '.join(peer.operations)}: {getattr(peer, 'what', '')}", peer.durability)
    out.print(table)


@app.command()
def compare(
    old: Annotated[Path, typer.Argument(metavar="OLD.json")],
    new: Annotated[Path, typer.Argument(metavar="NEW.json")],
) -> None:
    """Hold two results against each other; exit code 1 if anything became more than 10 % worse."""
    compared = comparison.compare(_read(old), _read(new))
    comparison.show(compared, _console())
    raise typer.Exit(EXIT_REGRESSION if compared.regressions else 0)


@app.command()
def report(
    files: Annotated[list[Path], typer.Argument(metavar="FILE.json...")],
    out: Annotated[Path, typer.Option("--out", help="a directory, made if it is not there")] = Path("bench-report"),
) -> None:
    """One HTML page with tables and plots, and the plots as PNG files."""
    from bench.report import write_report

    print(write_report([_read(path) for path in files], out))


def _measure(jobs: list[Job], *, json_file: Path | None, store: bool, out: Path | None, budget_s: float = math.inf) -> None:
    total = sum(len(job.scenarios) + len(job.peers) for job in jobs)
    try:
        with runner.bar(total) as bar:
            found = uvloop.run(_until_told_to_stop(runner.run(jobs, bar, budget_s=budget_s)))
    except (asyncio.CancelledError, KeyboardInterrupt):
        Console(stderr=True).print("interrupted: everything is stopped, and nothing is stored")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    console = _console()
    show(found, console)
    if json_file is not None:
        found.write(json_file)
    before: Results | None = None
    if store:
        path = RESULTS / found.file_name
        last = results.latest(RESULTS, found.machine, but=path)
        _merged(found, path).write(path)
        console.print(f"stored as {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}", highlight=False)
        if last is not None:
            before = last[1]
            console.print(f"\ncompared with {last[0].name}:", highlight=False)
            comparison.show(comparison.compare(before, found), console)
    if out is not None:
        from bench.report import write_report

        console.print(f"report: {write_report([found], out, before=before)}", highlight=False)
    wrong = [row.name for row in found.rows if row.system == OURS and row.faults is not None and (row.faults.lost or row.faults.doubled)]
    if wrong:
        console.print(f"CHANGES LOST OR MADE TWICE: {', '.join(wrong)}", style="bold red")
    if wrong or not found.rows:
        raise typer.Exit(1)


async def _until_told_to_stop(run: Coroutine[Any, Any, Results]) -> Results:
    """SIGTERM ends a run as Ctrl-C does: in order, with nothing left running."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await run


def _merged(found: Results, path: Path) -> Results:
    """With what is stored of the same commit; a working copy that was changed may not be the same as it was then."""
    if not path.exists() or found.commit.endswith("+"):
        return found
    try:
        return found.over(results.read(path))
    except FormatError:
        return found


def show(found: Results, console: Console) -> None:
    """Print tables of a result."""
    machine = found.machine
    python = f"Python {machine.python} ({machine.interpreter_ms:.0f} ms)"
    title = f"{machine.cpu}, {machine.cores} cores, {python}, {machine.build} build, commit {found.commit}"
    if any(row.runs for row in found.rows):
        console.print(tables.calls_table(found.rows, title=title, narrow=console.width < WIDTH_OF_ALL))
    ratios = tables.ratios_table(found.rows)
    if ratios is not None:
        console.print(ratios)
    figures = tables.figures_table(found.rows)
    if figures is not None:
        console.print(figures)
    for line in tables.missing_lines(found):
        console.print(line, highlight=False, markup=False, style="yellow")


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH_WITHOUT_TERMINAL)


def _read(path: Path) -> Results:
    try:
        return results.read(path)
    except FormatError as error:
        _wrong(str(error))
    except OSError as error:
        _wrong(f"{path}: {error.strerror}")


def _wrong(text: str) -> NoReturn:
    Console(stderr=True, soft_wrap=True).print(f"error: {text}", highlight=False, markup=False)
    raise typer.Exit(EXIT_USAGE)
