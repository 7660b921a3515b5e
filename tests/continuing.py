"""Saves agents in one process and goes on with them in another.

`python -m tests.continuing save|restore MODEL STORE LENGTH…` prints, for each length and for a
fork of the last, the tokens that follow and where the prompt's KV came from.
"""

import json
import sys
from pathlib import Path
from typing import Any

from edgecortex import Agent, Engine, EngineConfig, Generation, SamplingParams
from edgecortex.bench.text import english

MORE = 3  # tokens of the next turn
NUM_TOKENS = 8  # that are generated then


def main(mode: str, model: str, store: str, *lengths: str) -> None:
    config = EngineConfig(store_path=Path(store))
    with Engine.load(model, config=config) as engine:
        text = engine.model.tokenizer.encode(english()[:20_000], first=True)
        names = {f"at-{length}": int(length) for length in lengths}
        act = save if mode == "save" else restore
        found = {name: act(engine, name, text, length) for name, length in names.items()}
        print(json.dumps(found))


def save(engine: Engine, name: str, text: list[int], length: int) -> dict[str, Any]:
    """Keeps an agent and its fork, and goes on with both."""
    agent = engine.agent(name)
    agent.conversation.token_ids = text[:length]
    agent.read()
    agent.save(name).result()
    child = agent.fork()
    child.save(f"{name}-child").result()
    answers = [go_on(each, text, length) for each in (agent, child)]
    agent.close()
    child.close()
    return {"agent": answers[0], "child": answers[1]}


def restore(engine: Engine, name: str, text: list[int], length: int) -> dict[str, Any]:
    answers = {}
    for who, suffix in (("agent", ""), ("child", "-child")):
        agent, came = engine.restore(name + suffix)
        assert (came.num_memory_tokens, came.notice) == (0, ""), came
        answers[who] = go_on(agent, text, length) | {"num_disk_tokens": came.num_disk_tokens}
        agent.close()
    return answers


def go_on(agent: Agent, text: list[int], length: int) -> dict[str, Any]:
    """Asks for the tokens after some more of the text."""
    generation = Generation()
    sampling = SamplingParams(max_tokens=NUM_TOKENS)
    ids = text[: length + MORE]
    agent.engine.submit(agent, ids, sampling, generation, lambda text, cut: None)
    generation.text()
    fresh = generation.stats.num_prompt_tokens - generation.stats.num_cached_tokens
    return {"token_ids": generation.token_ids, "num_read_tokens": fresh}


if __name__ == "__main__":
    main(*sys.argv[1:])
