"""`edgecortex session`: agents that outlive a run."""

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from edgecortex.cli import kept, options, transcript
from edgecortex.cli.models import progress_bar
from edgecortex.config import SamplingParams
from edgecortex.errors import StoreError

app = typer.Typer(
    help="See, move and repair saved agents, which `edgecortex chat --session` makes.",
    no_args_is_help=True,
)

Name = Annotated[str, typer.Argument(help="The session's name.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")]


@app.command("list")
def list_sessions(as_json: AsJson = False) -> None:
    """All sessions, the newest first."""
    with kept.store() as store:
        rows = sorted(map(store.sessions.summary, store.sessions.names()), key=_age)
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    table = Table("session", "model", "messages", "tokens", "KV", "kept")
    for row in rows:
        if "error" in row:
            table.add_row(row["name"], f"damaged: {row['error']}")
        else:
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(row["updated"]))
            counts = f"{row['num_messages']}", f"{row['num_tokens']:,}"
            table.add_row(row["name"], row["model"], *counts, f"{row['nbytes'] / 1e6:.1f} MB", when)
    Console().print(table)


def _age(row: dict[str, Any]) -> float:
    return -float(row.get("updated", 0))


@app.command()
def show(name: Name, as_json: AsJson = False) -> None:
    """The conversation, as Markdown or with --json as the whole manifest."""
    with kept.store() as store:
        session = store.sessions.load(name)
    print(session.to_json().decode() if as_json else transcript.markdown(session.messages))


@app.command()
def save(
    name: Name,
    file: Annotated[Path, typer.Argument(help="A chat saved as JSON lines: /save NAME.jsonl.")],
    model: options.Model = options.DEFAULT_MODEL,
    kv_format: options.KVFormatName = options.DEFAULT_FORMAT,
    kv_budget: options.KVBudget = None,
) -> None:
    """Make a session of a transcript: the model reads it, and its KV is kept."""
    system, turns = transcript.read(file)
    config, console = options.engine_config(kv_format, kv_budget), Console(stderr=True)
    with kept.opened(name) as there:
        if there:
            raise StoreError(f"there is a session {name!r} already; choose another name")
        with options.load_engine(model, config) as engine:
            agent = options.make_agent(engine, system or "", SamplingParams())
            dropped = sum(agent.tell(question, reply) for question, reply in turns)
            with console.status("reading"):
                agent.read()
            nbytes = agent.save(name).result()
            tokens = agent.num_tokens
    if dropped:
        console.print(f"the context is full: the oldest {dropped} messages were dropped")
    console.print(f"session {name}: {tokens:,} tokens, {nbytes / 1e6:.1f} MB written")


@app.command()
def restore(
    name: Name,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Another model than the session's.")
    ] = None,
    kv_format: Annotated[
        str | None, typer.Option("--kv-format", help="Another KV format than the session's.")
    ] = None,
    kv_budget: options.KVBudget = None,
    as_json: AsJson = False,
) -> None:
    """Bring a session's KV back, read again what is missing of it, and keep that too."""
    with kept.opened(name) as saved:
        if saved is None:
            raise StoreError(f"no session {name!r}; `edgecortex session list` shows what there is")
        config = options.engine_config(kv_format or saved.kv_format, kv_budget)
        with options.load_engine(model or saved.model, config) as engine:
            agent, came = engine.restore(name)
            with Console(stderr=True).status("reading what is missing"):
                num_read = agent.read()
            agent.save(name).result()
    row = {
        "name": name,
        "num_tokens": came.num_tokens,
        "num_disk_tokens": came.num_disk_tokens,
        "num_read_tokens": num_read,
        "restore_s": came.seconds,
        "notice": came.notice,
    }
    if as_json:
        print(json.dumps(row))
        return
    if came.notice:
        print(f"edgecortex: {came.notice}", file=sys.stderr)
    print(
        f"{came.num_disk_tokens:,} of {came.num_tokens:,} tokens from disk in "
        f"{came.seconds * 1000:.0f} ms, {num_read:,} read anew"
    )


@app.command()
def fork(name: Name, new: Annotated[str, typer.Argument(help="The second one's name.")]) -> None:
    """Make a second session with the same past; they share their KV."""
    with kept.store() as store, store.sessions.locked(new):
        store.sessions.copy(name, new)


@app.command()
def rename(name: Name, new: Annotated[str, typer.Argument(help="Its new name.")]) -> None:
    """Give a session another name."""
    with kept.store() as store, store.sessions.locked(name, new):
        store.sessions.rename(name, new)


@app.command()
def rm(name: Name, yes: Yes = False) -> None:
    """Remove a session; its KV stays until room is needed."""
    with kept.store() as store, store.sessions.locked(name):
        if not yes:
            typer.confirm(f"Remove session {name}?", abort=True, err=True)
        store.sessions.remove(name)


@app.command()
def export(
    name: Name, file: Annotated[Path, typer.Argument(help="The file to write, new.")]
) -> None:
    """Write a session and its KV to one file, for another machine with the same model."""
    from edgecortex.store import portable

    with kept.store() as store:
        _say(portable.export(store, name, file), f"written to {file}")


@app.command("import")
def import_session(
    file: Annotated[Path, typer.Argument(help="A file that `session export` wrote.")],
    name: Annotated[str | None, typer.Option("--name", help="Call it something else.")] = None,
) -> None:
    """Take a session out of a file."""
    from edgecortex.store import portable

    with kept.store() as store:
        moved = portable.import_file(store, file, name)
        _say(moved, f"imported as session {moved.session.name}")


def _say(moved: Any, done: str) -> None:
    missing = f"; {moved.num_missing} are missing, their tokens are read again" * bool(
        moved.num_missing
    )
    print(f"{moved.num_entries} blocks, {moved.nbytes / 1e6:.1f} MB {done}{missing}")


@app.command()
def verify(
    name: Annotated[str | None, typer.Argument(help="One session; all without a name.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check every block of a session; exit status 1 if anything stored is not whole."""
    with kept.store() as store, progress_bar() as progress:
        names = [name] if name else store.sessions.names()
        rows: list[dict[str, Any]] = []
        for each in names:
            progress("checking", len(rows), len(names))
            rows.append({"name": each, **store.verify_session(each)})
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        for row in rows:
            state = row["error"] or f"{row['num_stored']:,} of {row['num_tokens']:,} tokens stored"
            print(f"{row['name']}: {state}")
    if any(row["error"] or row["num_stored"] < row["num_kv_tokens"] for row in rows):
        raise typer.Exit(1)
