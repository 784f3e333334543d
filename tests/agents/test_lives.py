"""The life of each of the seven agents: turns, a cancel, a compaction, kills, an idle stop.

What differs between the agents is in `rig.py`: how each compacts, and whether it finds its session
again after a kill.
"""

import json
import os
import signal

import pytest
from rig import ALL, GEMINI, command_of, leftovers
from test_agents import check_completed, check_gap_free, is_chunk, is_end_of, kinds

FIRST = "the first prompt"
LONG = "lorem ipsum " * 600
SAID = "good morning"


@pytest.fixture(params=ALL, ids=[agent.name for agent in ALL])
def agent(request):
    return request.param


@pytest.fixture
def group(server, agent):
    server.create("room", agent)
    return "room"


def remembered(model):
    """The prompts of a person in the model's last turn, without what agents add to them."""
    return [user.split("\n")[0] for user in model.turns()[-1]["users"]]


def ask(server, group):
    """Runs a turn that the agent answers itself."""
    task = server.turn(group, f"and now? [[say:{SAID}]]")
    assert (task["state"], task["stop_reason"]) == ("completed", "end_turn"), task
    assert task["text"].strip().endswith(SAID), task
    assert task["findings"] == [], task
    return task


def begin(server, group):
    """Starts a turn that only ends if something ends it, and returns it once the agent answers."""
    with server.events(group, after=len(server.frames(group))) as events:
        task = server.submit(group, "never ending [[hold]]")
        events.until(is_chunk)
    return task


def pid_of(server, group, task):
    runs = server.get(f"/v1/groups/{group}/runs")["items"]
    run = server.get(f"/v1/tasks/{task['id']}")["run"]
    return next(item["pid"] for item in runs if item["id"] == run)


def check_continues(server, model, group, agent):
    """After the end of a run: the next turn is answered, by an agent that still knows the first
    prompt; one that cannot restore its session says so, and is held until a caller decides."""
    before = len(server.frames(group))
    with server.events(group, after=before) as events:
        task = server.submit(group, f"is the context there? [[say:{SAID}]]")
        ends = ("greenroom/group_held", "greenroom/task_ended")
        end = events.until(lambda frame: frame["kind"] in ends)
    if end["kind"] == "greenroom/group_held":
        server.post(f"/v1/groups/{group}/resume")
    assert server.settled(task)["state"] == "completed"
    is_lost = "greenroom/context_lost" in kinds(server.frames(group)[before:])
    assert is_lost == (end["kind"] == "greenroom/group_held")
    assert not (is_lost and agent.always_restores), server.frames(group)[before:]
    assert (FIRST in remembered(model)) != is_lost, "the transcript says what the agent remembers"
    ask(server, group)


def test_turns_a_cancel_and_a_compaction(server, model, agent, group):
    check_completed(server.turn(group, f"{FIRST} [[say:{SAID}]]\n{LONG}"), f"[turn 1] {SAID}")
    running = begin(server, group)
    server.post(f"/v1/tasks/{running['id']}/cancel", expect=(202,))
    cancelled = server.settled(running)
    assert (cancelled["state"], cancelled["stop_reason"]) == ("cancelled", "cancelled"), cancelled
    model.release()
    task = ask(server, group)
    assert task["run"] == cancelled["run"], "the agent obeys a cancel, no need to kill it"
    assert remembered(model)[0].startswith(FIRST), remembered(model)

    for number in range(agent.turns_before_compaction):
        assert server.turn(group, f"{number} {LONG}")["state"] == "completed"
    compaction = server.compact(group)
    assert compaction["state"] == "completed", compaction
    (record,) = server.compactions(group)
    assert (record["status"], record["error"]) == ("completed", None), record
    state = server.group(group)["compaction"]
    assert (state["count"], state["active"]) == (1, False), state
    assert len(server.segments(group)) == 2
    ask(server, group)
    check_gap_free(server.frames(group))


def test_kills_of_the_agent_and_of_the_server(server, model, agent, group):
    check_completed(server.turn(group, f"{FIRST}\n[[say:{SAID}]]"), f"[turn 1] {SAID}")
    running = begin(server, group)
    os.kill(pid_of(server, group, running), signal.SIGKILL)
    task = server.settled(running)
    assert (task["state"], task["stop_reason"]) == ("interrupted", "_process_exited"), task
    model.release()
    check_continues(server, model, group, agent)

    running = begin(server, group)
    server.process.kill()
    server.process.wait()
    left = {pid: command_of(pid) for pid in leftovers(server.mark)}
    assert not left, "processes that outlived the server"
    model.release()
    server.start()
    task = server.settled(running)
    assert (task["state"], task["stop_reason"]) == ("interrupted", "_server_restart"), task
    if FIRST in remembered(model):
        check_continues(server, model, group, agent)
    check_gap_free(server.frames(group))


@pytest.mark.defaults(idle_timeout="1s")
def test_idle_stop_and_return(server, model, agent, group):
    with server.events(group) as events:
        first = server.submit(group, f"{FIRST}\n[[say:{SAID}]]")
        events.until(is_end_of(first))
        events.until(lambda frame: frame["kind"] == "greenroom/run_exited")
    check_completed(server.settled(first), f"[turn 1] {SAID}")
    session = server.group(group)["session_id"]
    second = ask(server, group)
    assert second["run"] != server.settled(first)["run"]
    frames = kinds(server.frames(group))
    assert frames.count("session/prompt") == 2, "the replayed messages are not recorded again"
    is_lost = "greenroom/context_lost" in frames
    assert not (is_lost and agent.always_restores), frames
    assert (FIRST in remembered(model)) != is_lost, "the transcript says what the agent remembers"
    assert (server.group(group)["session_id"] == session) != is_lost


@pytest.mark.defaults(permission_policy="reject")
def test_permission_is_refused_by_the_policy(server, agent, tmp_path):
    """A policy decides what the agent asks; what one does that never asks, no policy prevents, and
    within its own directory no sandbox does."""
    group, site = f"policy-{agent.name}", tmp_path / "site"
    doomed = site / "doomed"
    doomed.mkdir(parents=True)
    server.create(group, agent, cwd=str(site))
    tool, arguments = agent.shell_call(f"rm -rf {doomed}")
    task = server.turn(group, f"tidy up [[tool:{tool} {json.dumps(arguments)}]]")
    assert doomed.exists() == agent.asks, "no answer allowed it"
    assert task["state"] in ("completed", "cancelled"), task
    digest = server.get(f"/v1/groups/{group}/digest")
    calls = sum(tool["calls"] for tool in digest["tools"].values())
    assert calls == (agent is not GEMINI), "gemini reports a refused call by its question only"
    asked_selected = (digest["permissions"]["asked"], digest["permissions"]["selected"])
    assert asked_selected == ((1, 1) if agent.asks else (0, 0)), digest
    if not agent.asks:
        return
    frames = server.frames(group)
    asked, answered = "session/request_permission", "greenroom/permission_resolved"
    shown = [frame for frame in frames if frame["kind"] in (asked, answered)]
    assert kinds(shown) == [asked, answered], kinds(frames)
    options = {option["optionId"]: option for option in shown[0]["payload"]["params"]["options"]}
    assert options[shown[1]["payload"]["selected"]]["kind"].startswith("reject")

    following = server.turn(group, f"and now? [[say:{SAID}]]")
    assert following["state"] == "completed", following
    assert following["text"].strip().endswith(SAID), following
