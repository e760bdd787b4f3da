"""The command line: every command is one call into the rooms below.

Exit statuses: 0 all claims hold, 1 a claim fails, 2 bad usage, 3 a trial errored, 4 none fails but some are undecided,
130 interrupted. Imports are inside the commands, so that listing stays quick.
"""

import difflib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from etude import __version__
from etude.commands import parsing
from etude.commands.parsing import BadUsage

__all__ = ["app", "main"]

app = typer.Typer(
    name="etude",
    help="Deep-learning papers as composable PyTorch parts, each proven by claims that run.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON.")]
StorePath = Annotated[Path, typer.Option("--store", help="Folder of the trials.", envvar="ETUDE_STORE")]


def _complete(incomplete: str) -> list[str]:
    from etude.lab.registry import load_registry

    return [card["slug"] for card in load_registry(plugins=False) if card["slug"].startswith(incomplete)]


Slugs = Annotated[
    list[str] | None,
    typer.Argument(metavar="SLUG...", help="slug, slug/claim, slug/claim@data, or all.", autocompletion=_complete),
]
Slug = Annotated[str, typer.Argument(metavar="SLUG", autocompletion=_complete)]


@contextmanager
def _door() -> Iterator[None]:
    """Turns what a user can mend into one line and exit status 2."""
    from etude.lab.registry import UnknownName
    from etude.lab.store import StoreError

    try:
        yield
    except (UnknownName, BadUsage, StoreError, FileNotFoundError, ConnectionError, ImportError) as error:
        typer.echo(f"etude: {parsing.one_line(error)}", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo("etude: interrupted; what has finished is stored, and the same command goes on from there", err=True)
        raise typer.Exit(130) from None


def _print_version(value: bool) -> bool:
    if value:
        typer.echo(f"etude {__version__}")
        raise typer.Exit
    return value


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


@app.command("list")
def list_papers(
    domain: Annotated[str | None, typer.Option("--domain", help="Only this domain.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """List the papers with their verdicts at small."""
    from etude.commands import listing

    with _door():
        rows = listing.rows(domain)
        typer.echo(json.dumps(rows, indent=1, ensure_ascii=False) if as_json else listing.text(rows), nl=as_json)


@app.command()
def show(slug: Slug, as_json: JsonFlag = False) -> None:
    """Show a paper: what it is, how to use it, its claims and their evidence."""
    from etude.commands import listing

    with _door():
        detail = listing.detail(slug)
        typer.echo(json.dumps(detail, indent=1, ensure_ascii=False) if as_json else listing.detail_text(detail))


@app.command()
def search(query: str, as_json: JsonFlag = False) -> None:
    """Search titles, authors, summaries and claims."""
    from etude.commands import listing

    with _door():
        rows = listing.find(query)
        typer.echo(json.dumps(rows, indent=1, ensure_ascii=False) if as_json else listing.text(rows), nl=as_json)


@app.command()
def run(
    papers: Slugs = None,
    scale: Annotated[str, typer.Option(help="smoke, small, medium or full.")] = "small",
    seeds: Annotated[str | None, typer.Option(help="A count (5: seeds 0-4) or a range (100-104).")] = None,
    engine: Annotated[str, typer.Option(help="inline, process or ray.")] = "process",
    workers: Annotated[int | None, typer.Option(help="Worker processes; the number of cores if not given.")] = None,
    address: Annotated[str | None, typer.Option(help="Address of a Ray cluster.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    store: StorePath = Path("runs"),
    evidence: Annotated[Path | None, typer.Option(help="Folder for the evidence of a small or medium run.")] = None,
    export: Annotated[bool, typer.Option("--export/--no-export", help="Whether to write evidence.")] = True,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run stored failures again.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would run, and how long.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Run claims and judge them. A rerun does only what is missing."""
    from etude.commands import running

    with _door():
        request = running.Request(
            names=papers or [], scale=scale, seeds=parsing.seeds(seeds), engine=engine, workers=workers,
            address=address, device=device, store=store, evidence=evidence, export=export, retry_failed=retry_failed,
        )  # fmt: skip
        if dry_run:
            typer.echo(running.dry_run(request, as_json=as_json))
            return
        status = running.run(request, as_json=as_json)
    raise typer.Exit(status)


@app.command("try")
def try_(
    papers: Slugs = None,
    data: Annotated[Path, typer.Option("--data", help="Folder of images, table, graph or recordings.")] = Path(),
    target: Annotated[str | None, typer.Option(help="Of a table or graph: the column to predict.")] = None,
    task: Annotated[str | None, typer.Option(help="Of a table: classification or regression.")] = None,
    size: Annotated[int | None, typer.Option(help="Of images: the side to scale them to.")] = None,
    window: Annotated[int | None, typer.Option(help="Of recordings: samples in a window.")] = None,
    sample_rate: Annotated[float | None, typer.Option(help="Of recordings that do not say it, in Hz.")] = None,
    budget: Annotated[str, typer.Option(help="Time to take, such as 90s, 20m or 1h.")] = "10m",
    scale: Annotated[str, typer.Option(help="Whose setups: small, medium or full.")] = "small",
    engine: Annotated[str, typer.Option(help="inline or process.")] = "process",
    workers: Annotated[int | None, typer.Option(help="Worker processes; the number of cores if not given.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    store: StorePath = Path("runs"),
    as_json: JsonFlag = False,
) -> None:
    """Find out which methods help on your own data. The same command again goes on where it stopped."""
    from etude.commands import trying

    with _door():
        if data == Path():
            raise BadUsage("name your data: etude try --data PATH")
        request = trying.Request(
            path=data, names=papers or [], target=target, task=task, size=size, window=window,
            sample_rate=sample_rate, budget=trying.seconds_of(budget), scale=scale, engine=engine, workers=workers,
            device=device, store=store,
        )  # fmt: skip
        answer = trying.ask(request, quiet=as_json)
        typer.echo(trying.as_json(answer) if as_json else trying.text(answer))


@app.command()
def verdict(
    papers: Slugs = None,
    check: Annotated[bool, typer.Option("--check", help="Recompute every committed verdict (to 1e-9).")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Print the committed verdicts, or recompute them from their trials."""
    from etude.commands import judging

    with _door():
        text, status = judging.check(papers or [], as_json) if check else judging.table(papers or [], as_json)
        typer.echo(text)
    raise typer.Exit(status)


@app.command()
def report(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the static site.")] = Path("site"),
    readme: Annotated[Path | None, typer.Option("--readme", help="Write the verdict table into this README.")] = None,
    check: Annotated[bool, typer.Option("--check", help="With --readme: only say whether it is in step.")] = False,
) -> None:
    """Write the static site from the evidence; with --readme, the table of a README instead."""
    from etude.commands import reporting

    with _door():
        typer.echo(reporting.readme(readme, check=check) if readme is not None else reporting.site(output))


@app.command()
def bench(
    papers: Slugs = None,
    record: Annotated[bool, typer.Option("--record", help="Keep the figures in benchmarks/RESULTS.md.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Compare speed with peers, side by side in one process (from a checkout)."""
    from etude.commands import benching

    with _door():
        typer.echo(benching.run(papers or [], as_json=as_json, record=record))


@app.command()
def registry(
    check: Annotated[bool, typer.Option("--check", help="Only say whether registry.json is in step.")] = False,
) -> None:
    """Write registry.json from the claims files."""
    from etude.commands import registering

    with _door():
        typer.echo(registering.check() if check else registering.write())


@app.command()
def data(
    action: Annotated[str, typer.Argument(metavar="list|path|fetch")] = "list",
    name: Annotated[str | None, typer.Argument(help="Name of a data set.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """List the public data sets, say where one lies, or fetch it."""
    from etude.commands import datasets

    with _door():
        typer.echo(datasets.act(action, name, as_json=as_json))


@app.command()
def new(
    slug: Annotated[str, typer.Argument(metavar="SLUG", help="Name of the paper, such as gradient_noise.")],
    domain: Annotated[str, typer.Option("--domain", help="The room of its method, such as training.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write a plug-in package into this folder.")
    ] = None,
) -> None:
    """Write the files of a new paper: method, claims, and tests that fail until written."""
    from etude.commands import creating

    with _door():
        typer.echo(creating.create(slug, domain, output))


@app.command()
def audit(
    papers: Slugs = None,
    claims: Annotated[int, typer.Option(help="Simulated claims for each check.")] = 400,
    scale: Annotated[str, typer.Option(help="Scale of the baselines of named papers.")] = "smoke",
    seeds: Annotated[int, typer.Option(help="Pairs of seeds for the baselines of named papers.")] = 5,
    workers: Annotated[int | None, typer.Option(help="Worker processes; the number of cores if not given.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Check how often the verdicts err: by simulation, or with the baselines of named papers set against themselves."""
    from etude.commands import auditing

    with _door():
        if papers:
            text, status = auditing.baselines(papers, scale=scale, seeds=seeds, workers=workers, as_json=as_json)
        else:
            text, status = auditing.simulations(claims, as_json=as_json)
        typer.echo(text)
    raise typer.Exit(status)


def main() -> None:
    """Runs the command line; an unknown command offers the nearest one."""
    arguments = sys.argv[1:]
    names = [
        command.name or (command.callback.__name__ if command.callback else "") for command in app.registered_commands
    ]
    if arguments and not arguments[0].startswith("-") and arguments[0] not in names:
        near = difflib.get_close_matches(arguments[0], names, n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"the commands are {', '.join(names)}"
        typer.echo(f"etude: unknown command {arguments[0]!r}; {hint}", err=True)
        sys.exit(2)
    app(prog_name="etude")
