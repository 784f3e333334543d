"""`greenroom agents check` with the seven agents, and with two that want a login or a model."""

import dataclasses

import pytest
from rig import ALL, GEMINI, QWEN, Model, Server, leftovers

VERSIONS = {
    "hermes": "0.19.0",
    "codex": "2.6.0",
    "claude": "0.100.0",
    "opencode": "1.18.33",
    "gemini": "0.61.0",
    "qwen": "0.24.4",
    "pi": "0.0.34",
}
CANNOT_RESUME = {"gemini", "pi"}  # they only load


@pytest.fixture
def check(tmp_path, model):
    def run(agents):
        server = Server(tmp_path, model, agents)
        code, found = server.check_agents()
        assert not leftovers(server.mark), "processes that outlived the check"
        return code, found

    return run


def test_each_agent_is_described(check):
    code, found = check(ALL)
    assert set(found) == set(VERSIONS) | {"demo"}
    assert {name: entry["problem"] for name, entry in found.items() if not entry["ok"]} == {}
    assert code == 0
    agents = {name: found[name]["agent"] for name in VERSIONS}
    assert {name: agent["version"] for name, agent in agents.items()} == VERSIONS
    assert all(agent["load"] and "image" in agent["prompts"] for agent in agents.values()), agents
    assert {name for name, agent in agents.items() if not agent["resume"]} == CANNOT_RESUME
    modes = {name: found[name]["permissions"]["modes"]["current"] for name in VERSIONS}
    # Those that ask for a permission in this mode; pi's mode is that of its thinking.
    asking = {"codex": "workspace-write", "qwen": "default", "gemini": "default"}
    assert {name: modes[name] for name in asking} == asking
    assert (modes["hermes"], modes["claude"], modes["opencode"]) == ("default", "default", "build")


def test_a_missing_login_and_a_missing_model_are_explained(check):
    unset = {"GEMINI_API_KEY": "", "OPENAI_API_KEY": ""}
    agents = [dataclasses.replace(agent, env=agent.env | unset) for agent in (GEMINI, QWEN)]
    code, found = check(agents)
    assert code == 1
    for name, method in (("gemini", "gemini-api-key"), ("qwen", "openai")):
        entry = found[name]
        assert entry["problem"]["kind"] == "auth_required", entry
        assert method in [known["id"] for known in entry["agent"]["auth_methods"]], entry
        assert "env_pass" in entry["problem"]["remedy"], entry
