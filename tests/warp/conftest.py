"""What holds after every test of Streams."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgecortex import Engine, EngineConfig
from tests.scripted import until


@pytest.fixture(scope="package")
def real(smollm2: Path) -> Iterator[Engine]:
    """An engine over SmolLM2 in full precision."""
    config = EngineConfig(kv_format="fp", use_store=False)
    with Engine.load(str(smollm2), config=config) as engine:
        yield engine


@pytest.fixture(autouse=True)
def books_agree(request: pytest.FixtureRequest) -> Iterator[None]:
    """The pool's books of a shared engine agree, and closed agents hold nothing."""
    yield
    for name in {"engine", "llama"} & set(request.fixturenames):
        engine = request.getfixturevalue(name)
        core = engine.core
        engine.call(core.pool.check)
        for agent in engine.call(lambda core=core: list(core.contexts._contexts)):
            agent.close()
        until(engine, lambda core=core: core.pool.used_bytes == 0)
        assert engine.call(lambda core=core: core.contexts._foreign) == {}
