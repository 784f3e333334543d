"""The tokens of digests are the model's own count, whatever an agent reports: its session's totals
(hermes), or those of each prompt. qwen and pi report none."""

import pytest
from rig import CLAUDE, CODEX, GEMINI, HERMES, OPENCODE

TURNS = 3
AGENTS = [HERMES, CODEX, CLAUDE, OPENCODE, GEMINI]


@pytest.mark.parametrize("agent", AGENTS, ids=[agent.name for agent in AGENTS])
def test_tokens_are_the_models_own_count(server, model, agent):
    """TD-9: of the group, of its run and of each turn."""
    group = f"tokens-{agent.name}"
    server.create(group, agent)
    tasks = [server.turn(group, f"turn {number}") for number in range(TURNS)]
    counts = [request["prompt_tokens"] for request in model.turns()]
    assert len(counts) == TURNS, counts
    turns = server.list(f"/v1/groups/{group}/turns")
    assert [turn["tokens"]["input"] for turn in turns] == counts
    for path in [f"/v1/groups/{group}/digest", f"/v1/runs/{tasks[0]['run']}/digest"]:
        assert server.get(path)["usage"]["input"] == sum(counts), path
