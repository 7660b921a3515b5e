"""`edgecortex workflow`: phases of agents that go on from what earlier phases computed."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from edgecortex import workflow as workflows
from edgecortex.cli import options
from edgecortex.cli.models import progress_bar
from edgecortex.errors import ConfigError

if TYPE_CHECKING:
    from edgecortex.phases import Answer, PhaseReport


def workflow(
    name: Annotated[
        str | None, typer.Argument(help="A TOML file, or a workflow that comes along.")
    ] = None,
    list_all: Annotated[bool, typer.Option("--list", help="List those that come along.")] = False,
    compare: Annotated[
        bool,
        typer.Option(help="Run it again with new agents in every phase, and compare the times."),
    ] = True,
    model: options.Model = options.DEFAULT_MODEL,
    kv_format: options.KVFormatName = options.DEFAULT_FORMAT,
    kv_budget: options.KVBudget = None,
    no_cache: options.NoCache = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object: all turns, and the phases.")
    ] = False,
) -> None:
    """Run a workflow: each phase's agents start from the KV of earlier phases.

    Its file says which agents there are, and who is asked what in which phase.
    """
    if list_all:
        for known, path in workflows.built_in().items():
            print(f"{known:<20}{workflows.load(str(path)).description}")
        return
    if name is None:
        raise ConfigError("expected a workflow: a TOML file, or one that --list shows")
    plan = workflows.load(name)
    config = options.engine_config(kv_format, kv_budget, no_cache)
    with TemporaryDirectory() as empty:  # neither of two that are compared knows earlier runs
        first = replace(config, store_path=Path(empty)) if compare else config
        kept = _run(plan, model, first, kept=True)
    cold = _run(plan, model, replace(config, use_store=False), kept=False) if compare else []
    _show(plan, kept, cold, as_json)


def _run(plan: Any, model: str, config: Any, kept: bool) -> "list[Answer]":
    step = "kept" if kept else "cold"
    with options.load_engine(model, config) as engine, progress_bar() as progress:
        from edgecortex import phases

        return phases.run(engine, plan, kept, lambda done, total: progress(step, done, total))


def _show(plan: Any, kept: "list[Answer]", cold: "list[Answer]", as_json: bool) -> None:
    from edgecortex import phases

    reports = phases.compare(kept, cold)
    if as_json:
        turns = [asdict(a) | {"num_read_tokens": a.num_read_tokens} for a in kept]
        found = [
            asdict(r) | {"num_saved_tokens": r.num_saved_tokens, "speedup": r.speedup}
            for r in reports
        ]
        print(json.dumps({"name": plan.name, "phases": found, "turns": turns}, ensure_ascii=False))
        return
    for answer in kept:
        if not answer.given:
            print(f"[{answer.phase}] {answer.agent}: {answer.text.strip()}\n")
    Console().print(_compared(reports) if cold else _alone(kept))


def _compared(reports: "list[PhaseReport]") -> Table:
    table = Table("phase", "reused", "read", "read cold", "saved", "TTFT", "cold", "", "same")
    table.caption = (
        "tokens, saved by earlier phases: read cold less read; mean seconds to the first token; "
        "whether all answers were the same"
    )
    for r in reports:
        counts = r.num_reused_tokens, r.num_read_tokens, r.num_cold_tokens, r.num_saved_tokens
        times = f"{r.ttft_kept_s:.2f}", f"{r.ttft_cold_s:.2f}", f"{r.speedup:.1f}×"
        table.add_row(r.name, *map("{:,}".format, counts), *times, "yes" if r.same_text else "no")
    return table


def _alone(answers: "list[Answer]") -> Table:
    table = Table("phase", "agent", "prompt", "memory", "disk", "read", "TTFT s")
    for a in answers:
        counts = a.num_prompt_tokens, a.num_memory_tokens, a.num_disk_tokens, a.num_read_tokens
        table.add_row(a.phase, a.agent, *(f"{count:,}" for count in counts), f"{a.ttft_s:.3f}")
    return table
