"""Saves agents in one process and goes on with them in another.

`python -m tests.continuing save|restore MODEL STORE LENGTH…` prints, for each length, for a fork
that has said something else, and for an agent with an injected thought, the tokens that follow
and where the prompt's KV came from.
"""

import json
import sys
from pathlib import Path
from typing import Any

from edgecortex import Agent, Engine, EngineConfig, Generation, SamplingParams
from edgecortex.bench.text import english
from edgecortex.warp.cortex import CortexConfig

MORE = 3  # tokens of the next turn
NUM_TOKENS = 8  # that are generated then
THINKER = "thinker"
LIMIT = SamplingParams(max_tokens=NUM_TOKENS)


def main(mode: str, model: str, store: str, *lengths: str) -> None:
    config = EngineConfig(store_path=Path(store))
    with Engine.load(model, config=config) as engine:
        text = engine.model.tokenizer.encode(english()[:20_000], first=True)
        names = {f"at-{length}": int(length) for length in lengths}
        act, think = (save, inject) if mode == "save" else (restore, recall)
        found = {name: act(engine, name, text, length) for name, length in names.items()}
        print(json.dumps(found | {THINKER: think(engine)}))


def save(engine: Engine, name: str, text: list[int], length: int) -> dict[str, Any]:
    """Keeps an agent, and its fork that has said something else, and goes on with both."""
    agent = engine.agent(name)
    agent.conversation.token_ids = text[:length]
    agent.read()
    agent.save(name).result()
    child = agent.fork()
    say_more(child, text[-5:])
    child.save(f"{name}-child").result()
    answers = [go_on(agent, text[length:]), go_on(child, text)]
    agent.close()
    child.close()
    return {"agent": answers[0], "child": answers[1]}


def restore(engine: Engine, name: str, text: list[int], length: int) -> dict[str, Any]:
    answers = {}
    for who, suffix, then in (("agent", "", text[length:]), ("child", "-child", text)):
        agent, came = engine.restore(name + suffix)
        assert (came.num_memory_tokens, came.notice) == (0, ""), came
        answers[who] = go_on(agent, then) | {"num_disk_tokens": came.num_disk_tokens}
        agent.close()
    return answers


def say_more(agent: Agent, ids: list[int]) -> None:
    """Lets an agent read these tokens and answer, and keeps all of that in its KV."""
    ids = agent.conversation.token_ids + ids
    agent.conversation.token_ids = ids + generate(agent, ids, 2).token_ids
    agent.read()


def go_on(agent: Agent, then: list[int]) -> dict[str, Any]:
    """Asks for the tokens after some more text."""
    known = agent.conversation.token_ids
    found = generate(agent, known + then[:MORE])
    fresh = found.stats.num_prompt_tokens - found.stats.num_cached_tokens
    return {"num_known": len(known), "token_ids": found.token_ids, "num_read_tokens": fresh}


def generate(agent: Agent, ids: list[int], num_tokens: int = NUM_TOKENS) -> Generation:
    generation, sampling = Generation(), SamplingParams(max_tokens=num_tokens)
    agent.engine.submit(agent, ids, sampling, generation, lambda text, cut: None)
    generation.text()
    return generation


def inject(engine: Engine) -> dict[str, Any]:
    """Keeps an agent that has spoken since a thought was injected, and goes on with it."""
    agent = engine.agent(THINKER, system=english()[:2_600], sampling=LIMIT)
    agent.chat("What is this about?").text()
    agent.think_with(CortexConfig(threshold=None, sampling=LIMIT))
    thought = agent.spawn("Name a person in it.").result(60)
    assert thought.status == "accepted", thought
    agent.chat("Who is in it?").text()
    agent.save(THINKER).result()
    return talk_on(agent)


def recall(engine: Engine) -> dict[str, Any]:
    agent, came = engine.restore(THINKER, sampling=LIMIT)
    assert (came.num_memory_tokens, came.notice) == (0, ""), came
    return talk_on(agent) | {"num_disk_tokens": came.num_disk_tokens}


def talk_on(agent: Agent) -> dict[str, Any]:
    thoughts, known = [thought.id for thought in agent.thoughts], agent.num_tokens
    generation = agent.chat("What happens then?")
    text, stats = generation.text(), generation.stats
    fresh = stats.num_prompt_tokens - stats.num_cached_tokens
    found = {"thoughts": thoughts, "num_known": known, "num_read_tokens": fresh}
    return found | {"text": text, "token_ids": generation.token_ids}


if __name__ == "__main__":
    main(*sys.argv[1:])
