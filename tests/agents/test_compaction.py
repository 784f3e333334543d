"""Compactions of real agents: ordered over HTTP, and by the agents themselves.

hermes compacts when the text of a conversation is long, the others when the model says that a
prompt had many tokens. What a real agent does on the way there differs; what greenroom must make of
it does not: one compaction, one record, one count, one rotation.
"""

import json
import os
import signal

import pytest
from rig import CLAUDE, CODEX, HERMES, HERMES_ROTATING
from test_agents import FIRST_TEXT, WORDS, check_completed, check_gap_free, is_end_of, kinds

LONG = "lorem ipsum " * 3_300  # 10,000 tokens by hermes' count: the fifth prompt exceeds its limit
SHORT = "lorem ipsum " * 600  # as many turns stay far below, even if it counts twice after a load
HERMES_TURNS = 4  # it compacts no shorter conversation
SUMMARY = "A summary of what was said before."
ENDED, STARTED = "greenroom/compaction_ended", "greenroom/compaction_started"


def for_each(*agents):
    """Runs a test once for each of the agents."""
    return pytest.mark.parametrize("agent", agents, ids=[agent.name for agent in agents])


def grow(server, group, agent, text=LONG):
    """Runs turns until the conversation is long, but not long enough for the agent to compact."""
    if agent.nearly_full:
        prompts = ["1 say on", "2 say on", f"3 say on [[tokens:{agent.nearly_full}]]"]
    else:
        prompts = [f"{number} {text}" for number in range(1, 1 + HERMES_TURNS)]
    tasks = [server.submit(group, prompt) for prompt in prompts]
    for number, task in enumerate(tasks, 1):
        check_completed(server.settled(task), f"[turn {number}] {WORDS}")
    return prompts


def fill(server, group, agent):
    """Runs a turn with enough reported tokens that the agent compacts before the next."""
    task = server.turn(group, f"no more room [[tokens:{agent.full}]]")
    assert task["state"] == "completed", task


def check_answered(server, model, group):
    """The agent answers a prompt itself, with the model's words. Returns the task."""
    prompt = f"and now? [[say:{FIRST_TEXT}]]"
    task = server.turn(group, prompt)
    assert (task["state"], task["stop_reason"]) == ("completed", "end_turn"), task
    assert task["text"].strip().endswith(FIRST_TEXT), task
    assert model.turns()[-1]["users"][-1].endswith(prompt)
    return task


def check_compacted(server, group, times):
    """The group counts `times` compactions and has rotated its segment once for each of them."""
    state = server.group(group)["compaction"]
    assert (state["count"], state["active"]) == (times, False), state
    entities = server.compactions(group)
    completed = [entity for entity in reversed(entities) if entity["status"] == "completed"]
    assert len(completed) == times, entities
    assert not [entity for entity in entities if not entity["ended_at"]], entities

    segments = server.segments(group)
    closed, opened = segments[:-1], segments[-1]
    assert [segment["end_reason"] for segment in closed] == ["compaction"] * times, segments
    assert opened["closed_seq"] is None, segments
    for place, entity in enumerate(completed):
        ends = (entity["from_segment"], entity["to_segment"])
        assert ends == (segments[place]["segment"], segments[place + 1]["segment"]), entity
        assert segments[place + 1]["parent"] == segments[place]["segment"], segments
    assert server.group(group)["segment"] == opened["segment"]

    frames = server.frames(group)
    check_gap_free(frames)
    assert kinds(frames).count("greenroom/segment_ended") == times
    assert kinds(frames).count("greenroom/segment_started") == times + 1
    assert kinds(frames).count(STARTED) <= len(entities)
    return completed


def check_shrunk(entity):
    """hermes reports fewer messages and tokens than before."""
    assert 0 < entity["messages_after"] < entity["messages_before"], entity
    assert 0 < entity["tokens_after"] < entity["tokens_before"], entity


def check_nothing_changed(server, group, status):
    """The group's only compaction changed nothing. Returns it."""
    check_compacted(server, group, times=0)
    entities = server.compactions(group)
    assert [entity["status"] for entity in entities] == [status], entities
    assert entities[0]["to_segment"] is None, entities
    assert server.group(group)["compaction"]["last_started_at"], entities
    return entities[0]


def look_up():
    """A prompt that makes hermes use a tool, and compact before it gives the model the result."""
    tool = f"[[tool:read_file {json.dumps({'path': 'none.txt'})}]]"
    return f"look it up [[tokens:{HERMES.full}]] {tool}"


def first_words(model):
    """Returns the first words of the prompts in the last request to the model."""
    return [user.split()[0] for user in model.turns()[-1]["users"]]


def hermes_session(segment):
    """Returns hermes' own id of the segment's session, from its current or former `_meta`."""
    given = segment["provenance"].get("sessionProvenance", segment["provenance"])
    return given.get("currentHermesSessionId") or given.get("hermesSessionId")


def agent_pid(server, task):
    runs = server.get(f"/v1/groups/{task['group']}/runs")["items"]
    return next(run["pid"] for run in runs if run["id"] == task["run"])


# ---- ordered --------------------------------------------------------------------------------


@for_each(HERMES, CODEX, CLAUDE)
def test_ordered_compaction_completes(server, model, agent):
    server.create("room", agent)
    prompts = grow(server, "room", agent)
    task = server.compact("room")
    assert (task["kind"], task["state"], task["origin"]) == ("compaction", "completed", "api"), task

    (entity,) = check_compacted(server, "room", times=1)
    assert entity["task"] == task["id"], entity
    how = "hermes_stderr" if agent is HERMES else "acp"
    assert sorted(entity["sources"]) == sorted([how, "task"]), entity
    assert entity["source"] in entity["sources"], entity
    assert entity["error"] is None, entity
    if agent is HERMES:
        check_shrunk(entity)
    if agent is CLAUDE:  # it reports `completed` twice with one id, the summary only once
        assert entity["summary"] == SUMMARY, entity
    assert model.stats()["summaries"] == 1
    check_answered(server, model, "room")
    assert len(model.turns()[-1]["users"]) <= len(prompts) + 2
    check_compacted(server, "room", times=1)


@pytest.mark.parametrize(
    ("agent", "threshold"),
    [(HERMES, 0.7), (CODEX, 0.7), (CLAUDE, 0.5)],
    ids=["hermes", "codex", "claude"],
)
def test_reported_usage_orders_a_compaction(server, model, agent, threshold):
    server.create("room", agent, auto_compact=threshold)
    grow(server, "room", agent)
    tasks = server.tasks("room", "kind=compaction")
    assert [task["origin"] for task in tasks] == ["auto"], tasks
    task = server.settled(tasks[0])
    assert task["state"] == "completed", task

    (entity,) = check_compacted(server, "room", times=1)
    assert entity["task"] == task["id"] and "task" in entity["sources"], entity
    check_answered(server, model, "room")
    assert len(server.tasks("room", "kind=compaction")) == 1, "it is not full any more"


# ---- by the agents themselves, over ACP -------------------------------------------------------


@for_each(CODEX, CLAUDE)
def test_agent_compacts_by_itself(server, model, agent):
    server.create("room", agent)
    grow(server, "room", agent)
    fill(server, "room", agent)
    turn = check_answered(server, model, "room")
    assert model.stats()["summaries"] == 1

    (entity,) = check_compacted(server, "room", times=1)
    assert (entity["source"], entity["sources"]) == ("acp", ["acp"]), entity
    of_turn = [frame for frame in server.frames("room") if frame["task"] == turn["id"]]
    order = [frame["kind"] for frame in of_turn]
    assert order.index(STARTED) < order.index(ENDED) < order.index("greenroom/turn_settled")
    assert "greenroom/segment_started" in order, "it rotates in mid-turn (AM-14)"


@for_each(CODEX, CLAUDE)
def test_compaction_of_the_agent_itself_fails(server, model, agent):
    server.create("room", agent)
    grow(server, "room", agent)
    fill(server, "room", agent)
    model.answer_summaries("fail")
    turn = server.turn("room", "is anybody there?")
    assert (turn["state"], turn["stop_reason"]) == ("completed", "end_turn"), turn
    entity = check_nothing_changed(server, "room", "failed")
    assert entity["error"], entity
    if agent is CODEX:  # its only text is the compaction's error, and it gives no answer
        assert model.turns()[-1]["users"][-1] != "is anybody there?"
        assert "empty_answer" in turn["findings"], turn
    else:
        check_completed(turn, f"[turn 5] {WORDS}")
        assert "empty_answer" not in turn["findings"], turn

    model.answer_summaries("text")
    check_answered(server, model, "room")


@for_each(CODEX, CLAUDE)
def test_ordered_compaction_fails(server, model, agent):
    server.create("room", agent)
    grow(server, "room", agent)
    session = server.group("room")["session_id"]
    model.answer_summaries("fail")
    task = server.compact("room")
    assert task["state"] == "failed", task
    assert "unchanged" in task["error"]["message"], task
    entity = check_nothing_changed(server, "room", "failed")
    assert entity["task"] == task["id"], entity
    check_answered(server, model, "room")
    assert server.group("room")["session_id"] == session


@for_each(CODEX, CLAUDE)
def test_ordered_compaction_is_cancelled(server, model, agent):
    server.create("room", agent)
    prompts = grow(server, "room", agent)
    model.answer_summaries("hold")
    after = server.group("room")["last_seq"]
    with server.events("room", after) as events:
        task = server.order_compaction("room")
        model.until_summary_held()
        events.until(lambda frame: frame["kind"] == STARTED)
        assert server.group("room")["compaction"]["active"]
        server.post(f"/v1/tasks/{task['id']}/cancel", expect=(202,))
        events.until(is_end_of(task))
    task = server.settled(task)
    assert (task["state"], task["stop_reason"]) == ("cancelled", "cancelled"), task
    check_nothing_changed(server, "room", "cancelled")

    following = check_answered(server, model, "room")
    assert following["run"] == task["run"], "the agent obeys a cancel, no need to kill it"
    assert model.turns()[-1]["users"][: len(prompts)] == prompts


# ---- hermes, by itself ----------------------------------------------------------------------


def test_hermes_compacts_before_a_turn_and_inside_one(server, model):
    server.create("room", HERMES)
    grow(server, "room", HERMES)
    before = server.turn("room", f"5 {LONG}")
    check_completed(before, f"[turn 4] {WORDS}")  # hermes summarized some of five
    (first,) = check_compacted(server, "room", times=1)
    assert (first["source"], first["sources"]) == ("hermes_stderr", ["hermes_stderr"]), first
    check_shrunk(first)

    inside = server.turn("room", look_up())
    assert (inside["state"], inside["stop_reason"]) == ("completed", "end_turn"), inside
    assert inside["text"].strip().endswith(WORDS), inside
    _, second = check_compacted(server, "room", times=2)
    assert second["sources"] == ["hermes_stderr"], second
    check_shrunk(second)
    of_turn = [frame for frame in server.frames("room") if frame["task"] == inside["id"]]
    order = [frame["kind"] for frame in of_turn]
    assert order.index(ENDED) < order.index("greenroom/turn_settled")
    check_answered(server, model, "room")
    check_compacted(server, "room", times=2)


def test_hermes_rotates_its_session(server, model):
    """With `in_place: false` the session continues under an id that only hermes' meta reports."""
    server.create("room", HERMES_ROTATING)
    grow(server, "room", HERMES_ROTATING)
    session = server.group("room")["session_id"]
    check_completed(server.turn("room", f"5 {LONG}"), f"[turn 4] {WORDS}")
    check_answered(server, model, "room")
    assert first_words(model) == ["1", "2", "4", "5", "and"]

    (entity,) = check_compacted(server, "room", times=1)
    assert sorted(entity["sources"]) == ["hermes_meta", "hermes_stderr"], entity
    check_shrunk(entity)
    rotated = hermes_session(server.segments("room")[-1])
    assert rotated and rotated != session

    before = server.frames("room")
    assert server.stop() == 0, "exit code after SIGTERM"
    server.start()
    assert hermes_session(server.segments("room")[-1]) == rotated
    after = check_answered(server, model, "room")
    assert first_words(model) == ["1", "2", "4", "5", "and", "and"], "all after it is there"
    assert after["text"].startswith("[turn 6]"), after
    check_compacted(server, "room", times=1)
    frames = server.frames("room")
    assert frames[: len(before)] == before
    assert "greenroom/context_lost" not in kinds(frames)


@pytest.mark.parametrize("how", ["fail", "drop"])
def test_hermes_compacts_without_a_summary(server, model, how):
    """After an HTTP error it still drops messages; after a lost connection it aborts."""
    for group in ("own", "ordered"):
        server.create(group, HERMES)
    for group in ("own", "ordered"):
        grow(server, group, HERMES)
    model.answer_summaries(how)
    turn = server.submit("own", f"5 {LONG}")
    task = server.order_compaction("ordered")
    turn, task = server.settled(turn), server.settled(task)
    assert (turn["state"], turn["stop_reason"]) == ("completed", "end_turn"), turn
    assert turn["text"].strip().endswith(WORDS), turn

    for group in ("own", "ordered"):
        if how == "fail":
            (entity,) = check_compacted(server, group, times=1)
            check_shrunk(entity)
        else:
            entity = check_nothing_changed(server, group, "failed")
        assert entity["error"], entity
        assert "hermes_stderr" in entity["sources"], entity
    assert task["state"] == ("completed" if how == "fail" else "failed"), task
    assert how == "fail" or "unchanged" in task["error"]["message"], task


@pytest.mark.defaults(compaction_timeout="2s")
def test_hermes_compaction_exceeds_its_deadline(server, model):
    """The deadline ends the compaction, not the turn; a late end still counts."""
    server.create("room", HERMES)
    grow(server, "room", HERMES)
    model.answer_summaries("hold")
    after = server.group("room")["last_seq"]
    with server.events("room", after) as events:
        turn = server.submit("room", f"5 {LONG}")
        events.until(lambda frame: frame["kind"] == STARTED)
        model.until_summary_held()
        assert server.group("room")["compaction"]["active"]
        events.until(lambda frame: frame["kind"] == ENDED)
        check_nothing_changed(server, "room", "abandoned")
        assert server.get(f"/v1/tasks/{turn['id']}")["state"] == "running"

        model.release()
        events.until(is_end_of(turn))
    check_completed(server.settled(turn), f"[turn 4] {WORDS}")
    (entity,) = check_compacted(server, "room", times=1)
    assert len(server.compactions("room")) == 1
    check_shrunk(entity)


@pytest.mark.defaults(compaction_timeout="2s")
def test_ordered_hermes_compaction_exceeds_its_deadline(server, model):
    """The command blocks hermes completely: it reads no cancel, and its process must be killed."""
    server.create("room", HERMES)
    grow(server, "room", HERMES, SHORT)
    session = server.group("room")["session_id"]
    model.answer_summaries("hold")
    task = server.compact("room")
    assert (task["state"], task["stop_reason"]) == ("interrupted", "_deadline"), task
    check_nothing_changed(server, "room", "abandoned")
    following = check_answered(server, model, "room")
    assert following["run"] != task["run"]
    assert server.group("room")["session_id"] == session
    assert first_words(model) == ["1", "2", "3", "4", "and"]


@pytest.mark.defaults(retry="never")
def test_hermes_is_killed_during_a_compaction(server, model):
    server.create("room", HERMES)
    grow(server, "room", HERMES)
    model.answer_summaries("hold")
    after = server.group("room")["last_seq"]
    with server.events("room", after) as events:
        turn = server.submit("room", f"5 {LONG}")
        events.until(lambda frame: frame["kind"] == STARTED)
        model.until_summary_held()
        turn = server.get(f"/v1/tasks/{turn['id']}")
        os.kill(agent_pid(server, turn), signal.SIGKILL)
        events.until(is_end_of(turn))
        order = kinds(events.frames)
    assert order.index(ENDED) < order.index("greenroom/turn_settled"), order
    turn = server.settled(turn)
    assert (turn["state"], turn["stop_reason"]) == ("interrupted", "_process_exited"), turn
    check_nothing_changed(server, "room", "abandoned")

    # The dead process still holds hermes' own lock: the new one starts often and is refused.
    model.answer_summaries("text")
    following = check_answered(server, model, "room")
    assert following["run"] != turn["run"]
    check_compacted(server, "room", times=0)
    statuses = [entity["status"] for entity in server.compactions("room")]
    assert statuses.count("abandoned") == 1 and set(statuses) <= {"abandoned", "skipped"}, statuses


def check_not_wedged(server, model, session):
    """The session continues in another process, which answers as the wedged one would not."""
    check_answered(server, model, "room")
    assert server.group("room")["session_id"] == session
    assert "greenroom/context_lost" not in kinds(server.frames("room"))
    check_compacted(server, "room", times=1)


@pytest.mark.defaults(retry_base="1s")
def test_hermes_is_wedged_by_a_cancel(server, model):
    """hermes ends the turn with an error; then it would answer `Queued for the next turn`."""
    server.create("room", HERMES)
    grow(server, "room", HERMES, SHORT)
    session = server.group("room")["session_id"]
    model.answer_summaries("hold")
    after = server.group("room")["last_seq"]
    with server.events("room", after) as events:
        turn = server.submit("room", look_up())
        events.until(lambda frame: frame["kind"] == STARTED)
        model.until_summary_held()
        server.post(f"/v1/tasks/{turn['id']}/cancel", expect=(202,))
        server.until_hermes_logs("Cancelled session")
        model.release()
        events.until(is_end_of(turn))
    turn = server.settled(turn)
    assert turn["state"] == "cancelled", turn
    check_not_wedged(server, model, session)
    assert first_words(model) == ["1", "2", "4", "look", "and"], "the compaction was not lost"


@pytest.mark.defaults(retry_base="1s")
def test_hermes_is_wedged_by_a_late_cancel(server, model):
    """The command blocks hermes, which reads the cancel when no prompt is left to cancel."""
    server.create("room", HERMES)
    grow(server, "room", HERMES, SHORT)
    session = server.group("room")["session_id"]
    model.answer_summaries("hold")
    task = server.order_compaction("room")
    model.until_summary_held()
    server.post(f"/v1/tasks/{task['id']}/cancel", expect=(202,))
    model.release()
    task = server.settled(task)
    assert task["state"] in ("completed", "cancelled"), task
    check_not_wedged(server, model, session)
    check_answered(server, model, "room")
