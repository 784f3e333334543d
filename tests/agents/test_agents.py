"""Two real agents under a real greenroom, with a model on loopback.

Each test runs once for hermes and once for codex. The model's `[turn N]` counts the user messages
that the agent sent it, so N shows what the agent remembers.
"""

import os
import signal

import pytest
from rig import AGENTS, command_of, leftovers, marked

FIRST_TEXT = "good morning"
WORDS = "alpha bravo charlie delta echo foxtrot golf hotel india juliet kilo lima"


@pytest.fixture(params=AGENTS, ids=[agent.name for agent in AGENTS])
def agent(request):
    return request.param


@pytest.fixture
def group(server, agent):
    """A group of its own for the agent under test."""
    name = f"room-{agent.name}"
    server.create(name, agent)
    return name


def check_completed(task, text):
    """The agent ended the turn by itself, with exactly the model's words."""
    assert (task["state"], task["stop_reason"]) == ("completed", "end_turn"), task
    assert task["error"] is None, task
    assert task["text"].strip() == text, task


def check_gap_free(frames):
    assert [frame["seq"] for frame in frames] == list(range(1, len(frames) + 1))


def update_of(frame):
    """The kind of a `session/update` frame, such as `agent_message_chunk`; else None."""
    if frame["kind"] != "session/update":
        return None
    # The payload is the message as the agent sent it: with or without its JSON-RPC envelope.
    payload = frame["payload"]
    return payload.get("params", payload)["update"]["sessionUpdate"]


def is_chunk(frame):
    return update_of(frame) == "agent_message_chunk"


def is_end_of(task):
    return lambda frame: frame["kind"] == "greenroom/task_ended" and frame["task"] == task["id"]


def kinds(frames):
    return [frame["kind"] for frame in frames]


def check_resumed(server, group, session, frames_before):
    """The session continued in another process, and replayed messages were not recorded again."""
    after = server.group(group)
    assert after["session_id"] == session, after
    frames = server.frames(group)
    check_gap_free(frames)
    assert frames[: len(frames_before)] == frames_before
    added = frames[len(frames_before) :]
    assert "greenroom/context_lost" not in kinds(added)
    assert "user_message_chunk" not in [update_of(frame) for frame in added]
    assert sum(frame["kind"] == "session/prompt" for frame in frames) == 2


def test_two_turns_share_one_session(server, model, agent, group):
    first = server.turn(group, f"first [[say:{FIRST_TEXT}]]")
    check_completed(first, f"[turn 1] {FIRST_TEXT}")
    second = server.turn(group, "second")
    check_completed(second, f"[turn 2] {WORDS}")

    assert model.turns()[-1]["users"] == [f"first [[say:{FIRST_TEXT}]]", "second"]
    assert first["run"] == second["run"]
    assert server.group(group)["agent"] == agent.name


def test_digests_have_the_usage_of_the_agent(server, agent, group):
    """TD-9: context from usage updates, tokens from answers, by model if the agent has them."""
    tasks = [server.turn(group, f"turn [[say:{FIRST_TEXT}]]") for _ in range(2)]
    digests = [server.get(f"/v1/groups/{group}/digest")]
    digests.append(server.get(f"/v1/runs/{tasks[0]['run']}/digest"))
    for digest in digests:
        usage = digest["usage"]
        assert (digest["turn_count"], digest["stop_reasons"]) == (2, {"end_turn": 2}), digest
        assert 0 < usage["used"] <= usage["size"], digest
        assert usage["input"] > 0 and usage["output"] > 0, digest
        assert bool(digest["by_model"]) == (agent.name == "codex"), digest
        assert (digest["outcome"], digest["findings"]) == (None, []), digest
    turns = server.list(f"/v1/groups/{group}/turns")
    assert [turn["task"] for turn in turns] == [task["id"] for task in tasks]
    assert sum(turn["tokens"]["input"] for turn in turns) == digests[0]["usage"]["input"]


def test_frames_stream_while_the_turn_runs(server, model, group):
    with server.events(group) as events:
        task = server.submit(group, "slowly [[hold]]")
        chunk = events.until(is_chunk)
        assert chunk["task"] == task["id"]
        assert server.get(f"/v1/tasks/{task['id']}")["state"] == "running"
        assert "greenroom/turn_settled" not in kinds(events.frames)

        model.release()
        events.until(is_end_of(task))
        streamed = events.frames
    check_completed(server.settled(task), f"[turn 1] {WORDS}")
    check_gap_free(streamed)
    assert server.frames(group)[: len(streamed)] == streamed
    assert kinds(streamed).count("greenroom/turn_settled") == 1


def test_cancel_during_a_stream(server, model, group):
    with server.events(group) as events:
        task = server.submit(group, "never ending [[hold]]")
        events.until(is_chunk)
        server.post(f"/v1/tasks/{task['id']}/cancel", expect=(202,))
        events.until(is_end_of(task))
    cancelled = server.settled(task)
    assert (cancelled["state"], cancelled["stop_reason"]) == ("cancelled", "cancelled"), cancelled

    following = server.turn(group, f"still there? [[say:{FIRST_TEXT}]]")
    assert following["state"] == "completed", following
    assert following["text"].strip().endswith(FIRST_TEXT), following
    assert following["run"] == cancelled["run"], "the agent obeys a cancel, no need to kill it"
    users = model.turns()[-1]["users"]
    assert users == ["never ending [[hold]]", f"still there? [[say:{FIRST_TEXT}]]"]


def test_server_restart_keeps_the_session(server, model, group):
    first = server.turn(group, "before")
    check_completed(first, f"[turn 1] {WORDS}")
    session = server.group(group)["session_id"]
    before = server.frames(group)
    check_gap_free(before)

    assert server.stop() == 0, "exit code after SIGTERM"
    left = {pid: command_of(pid) for pid in leftovers(server.mark)}
    assert not left, "processes that outlived the server"
    server.start()

    with server.events(group, after=len(before)) as events:
        second = server.submit(group, "after")
        events.until(is_end_of(second))
        assert events.frames[0]["seq"] == len(before) + 1
    second = server.settled(second)
    check_completed(second, f"[turn 2] {WORDS}")
    assert model.turns()[-1]["users"] == ["before", "after"]
    assert second["run"] != first["run"]
    check_resumed(server, group, session, before)


def test_killed_agent_is_replaced_and_keeps_its_session(server, model, group):
    first = server.turn(group, "before")
    check_completed(first, f"[turn 1] {WORDS}")
    session = server.group(group)["session_id"]
    before = server.frames(group)

    runs = server.get(f"/v1/groups/{group}/runs")["items"]
    pid = next(run["pid"] for run in runs if run["id"] == first["run"])
    assert pid in marked(server.mark), "the run's pid is a process of this test"
    assert pid in server.logged_pids(group)
    with server.events(group, after=len(before)) as events:
        os.kill(pid, signal.SIGKILL)
        exited = events.until(lambda frame: frame["kind"] == "greenroom/run_exited")
    digest = server.get(f"/v1/runs/{first['run']}/digest")
    assert (digest["outcome"], digest["watermark_seq"]) == ("crashed", exited["seq"]), digest
    assert [finding["kind"] for finding in digest["findings"]] == ["abnormal_stop"], digest

    second = server.turn(group, "after")
    check_completed(second, f"[turn 2] {WORDS}")
    assert model.turns()[-1]["users"] == ["before", "after"]
    assert second["run"] != first["run"]
    check_resumed(server, group, session, before)
    runs = server.get(f"/v1/groups/{group}/runs")["items"]
    dead = next(run for run in runs if run["id"] == first["run"])
    assert dead["state"] in ("crashed", "exited"), dead
    assert dead["ended_at"], dead


def test_two_agents_run_at_once(server, model):
    tasks = {}
    for agent in AGENTS:
        group = f"side-{agent.name}"
        server.create(group, agent)
        tasks[group] = server.submit(group, "together [[hold]]")
    for group in tasks:
        with server.events(group) as events:
            events.until(is_chunk)
    for task in tasks.values():
        assert server.get(f"/v1/tasks/{task['id']}")["state"] == "running"
    model.release()
    for task in tasks.values():
        check_completed(server.settled(task), f"[turn 1] {WORDS}")
