#!/usr/bin/env python3
"""A model that answers on loopback, so that real agents run without network, key or cost.

It owns the four wire formats that the agents in this folder speak: OpenAI chat completions
(hermes, qwen, opencode, pi), OpenAI responses (codex), Anthropic messages (claude) and Gemini's
(gemini), each streamed or in one piece.
It keeps no state: an answer depends only on its request, so a turn number in an answer proves what
the *agent* remembered. Only the answer to a request for a summary can be switched.

The answer to a turn is `[turn N] alpha bravo …`, where N counts the user messages in the request.
Markers in the newest user message change it:

    [[say:TEXT]]    answer `[turn N] TEXT`
    [[reply:N]]     answer with N words
    [[delay:MS]]    pause before each word after the first
    [[hold]]        send the first word, then wait for `POST /control/release`; not with [[say]]:
                    an agent may join a prompt that was cut short with the one after it
    [[fail:CODE]]   answer HTTP CODE
    [[tokens:N]]    report that the prompt was N tokens long
    [[tool:NAME {…}]]  call this tool; its result is answered like any message, without the tokens

A request for a summary of the conversation gets a fixed text, or the answer that
`/control/summaries` sets. Any other request without tools, or for an answer by schema, is an
agent's own errand (a title): it gets a fixed text and is no turn.

    GET  /control/requests   the requests, oldest first
    GET  /control/stats      counts of turns, summaries, errands, failures, clients gone, other paths
    POST /control/release    releases every held answer
    POST /control/summaries  sets {"answer": …}: `text`, `fail` (HTTP 500), `drop` (the
                             connection, without an answer) or `hold` (until a release, then text)
    GET  /control/held       answers as soon as a summary is held

Run as a program it prints `{"url": "http://127.0.0.1:PORT"}` and serves until it is stopped.
"""

import argparse
import itertools
import json
import re
import sys
import threading
import time
from collections import Counter, deque
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODEL = "fake-model"
CONTEXT_TOKENS = 64_000
HOLD_S_MAX = 120
REQUESTS_KEPT_MAX = 1_000
ERRAND_TEXT = "A short note about the conversation so far."
SUMMARY_TEXT = "<summary>A summary of what was said before.</summary>"  # claude looks for the tag
SUMMARY_ASKED = re.compile(  # the words of hermes, codex and claude
    "You are a summarization agent creating a context checkpoint"
    "|You are performing a CONTEXT CHECKPOINT COMPACTION"
    "|create a detailed summary of the conversation so far"
)
SUMMARY_ROLES = re.compile(  # the words of qwen and pi, which give the role to the system
    "summarizes internal chat history|context summarization assistant"
)
SUMMARY_ANSWERS = ("text", "fail", "drop", "hold")
WORDS = "alpha bravo charlie delta echo foxtrot golf hotel india juliet kilo lima".split()
MARKER = re.compile(r"\[\[(say|reply|delay|hold|fail|tokens|tool)(?::(.*?))?\]\]", re.DOTALL)


@dataclass
class Request:
    """One request, reduced to the common fields of the wire formats."""

    wire: str
    stream: bool
    kind: str
    users: list = field(default_factory=list)
    answers_tool: bool = False
    prompt_tokens: int = 0

    def markers(self):
        newest = self.users[-1] if self.users and self.kind == "turn" else ""
        return dict(MARKER.findall(newest))


@dataclass
class Reply:
    """The answer: words, or one tool call."""

    words: list
    tool: tuple | None
    prompt_tokens: int
    delay_s: float = 0.0
    hold: bool = False

    @property
    def text(self):
        return "".join(self.words)


def is_person(text):
    """Whether a person wrote the text: agents wrap their own context in a tag."""
    return bool(text.strip()) and not text.lstrip().startswith(("<", "# AGENTS.md"))


def person_text(content):
    """Returns a person's text in a user message; empty if the message is the agent's own."""
    parts = content if isinstance(content, list) else [{"text": content}]
    return "\n".join(filter(is_person, (part.get("text") or "" for part in parts)))


def all_text(content):
    """Returns all text of a content field: a string, a list of parts, or one part."""
    if isinstance(content, dict):
        content = content.get("text") or content.get("parts")
    if isinstance(content, list):
        return "\n".join(map(all_text, content))
    return content or ""


def kind_of(body, entries, users):
    system = [entry.get("content") for entry in entries if entry.get("role") == "system"]
    if users and SUMMARY_ASKED.search(users[-1]) or SUMMARY_ROLES.search(all_text(system)):
        return "summary"
    by_schema = body.get("response_format") or (body.get("text") or {}).get("format")
    return "errand" if by_schema or not body.get("tools") else "turn"


def is_tool_result(entry):
    """Whether the newest entry of a request gives the result of a tool."""
    if entry.get("role") == "tool" or entry.get("type", "").endswith("_output"):
        return True
    parts = entry.get("content")
    return isinstance(parts, list) and any(part.get("type") == "tool_result" for part in parts)


def as_messages(body):
    """Returns the contents of a request of Gemini's as messages."""
    system = [{"role": "system", "content": all_text(body.get("systemInstruction"))}]
    entries = []
    for entry in body.get("contents") or []:
        parts = entry.get("parts") or []
        is_result = any("functionResponse" in part for part in parts)
        texts = [part for part in parts if "text" in part]
        entries.append({"role": "tool" if is_result else entry.get("role"), "content": texts})
    return system + entries


def read_request(wire, body):
    if wire == "gemini":
        entries = as_messages(body)
    else:
        entries = body.get("input" if wire == "responses" else "messages") or []
    if isinstance(entries, str):
        entries = [{"role": "user", "content": entries}]
    users = [person_text(entry.get("content")) for entry in entries if entry.get("role") == "user"]
    return Request(
        wire=wire,
        stream=bool(body.get("stream")),
        kind=kind_of(body, entries, users),
        users=list(filter(None, users)),
        answers_tool=bool(entries) and is_tool_result(entries[-1]),
        prompt_tokens=max(1, len(json.dumps(body)) // 4),
    )


def make_reply(request):
    markers = request.markers()
    tool, tokens = None, None
    if not request.answers_tool:
        tokens = int(markers.get("tokens") or 0)
    if "tool" in markers and not request.answers_tool:
        name, _, arguments = markers["tool"].partition(" ")
        tool = (name, arguments or "{}")
    if request.kind == "summary":
        text = SUMMARY_TEXT
    elif request.kind == "errand":
        text = ERRAND_TEXT
    else:
        count = int(markers.get("reply") or len(WORDS))
        text = markers.get("say") or " ".join(itertools.islice(itertools.cycle(WORDS), count))
        text = f"[turn {len(request.users)}] {text}"
    return Reply(
        words=[] if tool else re.findall(r"\S+\s*", text),
        tool=tool,
        prompt_tokens=tokens or request.prompt_tokens,
        delay_s=int(markers.get("delay") or 0) / 1000,
        hold="hold" in markers and "say" not in markers,
    )


class Chat:
    """OpenAI chat completions. `paced` yields the words of a reply at its pace."""

    def __init__(self, reply, number):
        self.reply = reply
        self.head = {"id": f"chatcmpl_{number}", "created": 0, "model": MODEL}
        out = max(1, len(reply.words))
        self.usage = {
            "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": out,
            "total_tokens": reply.prompt_tokens + out,
        }
        self.calls = None
        if reply.tool:
            name, arguments = reply.tool
            call = {"name": name, "arguments": arguments}
            self.calls = [{"id": f"call_{number}", "type": "function", "function": call}]
        self.finish = "tool_calls" if self.calls else "stop"

    def whole(self):
        message = {"role": "assistant", "content": self.reply.text or None}
        if self.calls:
            message["tool_calls"] = self.calls
        choice = {"index": 0, "message": message, "finish_reason": self.finish}
        return self.head | {"object": "chat.completion", "choices": [choice], "usage": self.usage}

    def events(self, paced):
        yield self._chunk({"role": "assistant", "content": ""})
        for word in paced:
            yield self._chunk({"content": word})
        if self.calls:
            yield self._chunk({"tool_calls": [self.calls[0] | {"index": 0}]})
        yield self._chunk({}, self.finish)
        yield None, self.head | {
            "object": "chat.completion.chunk",
            "choices": [],
            "usage": self.usage,
        }
        yield None, "[DONE]"

    def _chunk(self, delta, finish=None):
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return None, self.head | {"object": "chat.completion.chunk", "choices": [choice]}


class Responses:
    """OpenAI responses, one output item each: a message or a function call."""

    def __init__(self, reply, number):
        self.reply = reply
        out = max(1, len(reply.words))
        usage = {
            "input_tokens": reply.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": out,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": reply.prompt_tokens + out,
        }
        self.part = {"type": "output_text", "text": reply.text, "annotations": []}
        if reply.tool:
            name, arguments = reply.tool
            self.item = {"id": f"fc_{number}", "type": "function_call", "call_id": f"call_{number}"}
            self.item |= {"name": name, "arguments": arguments, "status": "completed"}
        else:
            self.item = {"id": f"msg_{number}", "type": "message", "role": "assistant"}
            self.item |= {"content": [self.part], "status": "completed"}
        self.opened = {"id": f"resp_{number}", "object": "response", "created_at": 0}
        self.opened |= {"model": MODEL, "status": "in_progress", "output": [], "usage": None}
        self.done = self.opened | {"status": "completed", "output": [self.item], "usage": usage}

    def whole(self):
        return self.done

    def events(self, paced):
        place = {"item_id": self.item["id"], "output_index": 0}
        blank = {"arguments": ""} if self.reply.tool else {"content": []}
        started = self.item | {"status": "in_progress"} | blank
        yield self._event("response.created", response=self.opened)
        yield self._event("response.output_item.added", output_index=0, item=started)
        if self.reply.tool:
            arguments = self.item["arguments"]
            yield self._event("response.function_call_arguments.delta", delta=arguments, **place)
            yield self._event(
                "response.function_call_arguments.done", arguments=arguments, **place
            )
        else:
            place["content_index"] = 0
            empty = self.part | {"text": ""}
            yield self._event("response.content_part.added", part=empty, **place)
            for word in paced:
                yield self._event("response.output_text.delta", delta=word, **place)
            yield self._event("response.output_text.done", text=self.reply.text, **place)
            yield self._event("response.content_part.done", part=self.part, **place)
        yield self._event("response.output_item.done", output_index=0, item=self.item)
        yield self._event("response.completed", response=self.done)

    @staticmethod
    def _event(kind, **fields):
        return kind, {"type": kind} | fields


class Messages:
    """Anthropic messages, one content block each: text or a tool use."""

    def __init__(self, reply, number):
        self.reply = reply
        self.usage = {
            "input_tokens": reply.prompt_tokens,
            "output_tokens": max(1, len(reply.words)),
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
        }
        self.block, self.stop_reason = {"type": "text", "text": reply.text}, "end_turn"
        if reply.tool:
            name, arguments = reply.tool
            self.block = {"type": "tool_use", "id": f"toolu_{number}", "name": name}
            self.block["input"] = json.loads(arguments)
            self.stop_reason = "tool_use"
        self.head = {"id": f"msg_{number}", "type": "message", "role": "assistant", "model": MODEL}

    def whole(self):
        end = {"stop_reason": self.stop_reason, "stop_sequence": None}
        return self.head | end | {"content": [self.block], "usage": self.usage}

    def events(self, paced):
        blank = {"input": {}} if self.reply.tool else {"text": ""}
        opened = {"content": [], "stop_reason": None, "stop_sequence": None, "usage": self.usage}
        yield self._event("message_start", message=self.head | opened)
        yield self._event("content_block_start", index=0, content_block=self.block | blank)
        if self.reply.tool:
            yield self._delta(type="input_json_delta", partial_json=json.dumps(self.block["input"]))
        else:
            for word in paced:
                yield self._delta(type="text_delta", text=word)
        yield self._event("content_block_stop", index=0)
        end = {"stop_reason": self.stop_reason, "stop_sequence": None}
        yield self._event("message_delta", delta=end, usage=self.usage)
        yield self._event("message_stop")

    def _delta(self, **delta):
        return self._event("content_block_delta", index=0, delta=delta)

    @staticmethod
    def _event(kind, **fields):
        return kind, {"type": kind} | fields


class Gemini:
    """Gemini's contents, one candidate of text or a function call."""

    def __init__(self, reply, number):
        self.reply, self.number = reply, number
        out = max(1, len(reply.words))
        self.usage = {
            "promptTokenCount": reply.prompt_tokens,
            "candidatesTokenCount": out,
            "totalTokenCount": reply.prompt_tokens + out,
        }
        self.calls = []
        if reply.tool:
            name, arguments = reply.tool
            self.calls = [{"functionCall": {"name": name, "args": json.loads(arguments)}}]

    def whole(self):
        return self._piece(self.calls or [{"text": self.reply.text}], "STOP")

    def events(self, paced):
        for word in paced:
            yield None, self._piece([{"text": word}])
        yield None, self._piece(self.calls or [{"text": ""}], "STOP")

    def _piece(self, parts, finish=None):
        candidate = {"content": {"role": "model", "parts": parts}, "index": 0}
        piece = {"candidates": [candidate], "modelVersion": MODEL, "responseId": f"r{self.number}"}
        if finish:
            candidate["finishReason"] = finish
            piece["usageMetadata"] = self.usage
        return piece


GEMINI_PATH = re.compile(
    "/v1beta/models/[^/:]+:(generateContent|streamGenerateContent|countTokens)"
)
WIRES = {
    "/v1/chat/completions": ("chat", Chat),
    "/v1/responses": ("responses", Responses),
    "/v1/messages": ("messages", Messages),
}
PLURALS = {"turn": "turns", "errand": "errands", "summary": "summaries"}


class Model(ThreadingHTTPServer):
    """The server: counts, received requests, and the gate that holds answers back."""

    daemon_threads = True

    def __init__(self, port):
        super().__init__(("127.0.0.1", port), Handler)
        self.stats = Counter()
        self.requests = deque(maxlen=REQUESTS_KEPT_MAX)
        self.numbers = itertools.count(1)
        self.gate = threading.Condition()
        self.releases = 0
        self.held = 0  # summaries that wait for a release
        self.summaries = "text"

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        """Ignores a client that is gone, as a killed agent is."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def release(self):
        with self.gate:
            self.releases += 1
            self.gate.notify_all()

    def hold_summary(self):
        """Waits for a release."""
        with self.gate:
            seen = self.releases
            self.held += 1
            self.gate.notify_all()
            self.gate.wait_for(lambda: seen < self.releases, timeout=HOLD_S_MAX)
            self.held -= 1

    def until_held(self):
        """Waits until a summary is held, and returns whether one is."""
        with self.gate:
            return self.gate.wait_for(lambda: self.held, timeout=HOLD_S_MAX)

    def paced(self, reply):
        """Yields the words of `reply`, first at once, the others at its pace."""
        with self.gate:
            seen = self.releases
        for place, word in enumerate(reply.words):
            if place == 1 and reply.hold:
                with self.gate:
                    self.gate.wait_for(lambda: seen < self.releases, timeout=HOLD_S_MAX)
            if 0 < place and reply.delay_s:
                time.sleep(reply.delay_s)
            yield word


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_args):
        """Logs nothing: the requests are in `/control/requests`."""

    def do_HEAD(self):
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def do_GET(self):
        path = self.path.partition("?")[0].rstrip("/")
        if path == "/control/requests":
            return self.send([asdict(request) for request in self.server.requests])
        if path == "/control/stats":
            return self.send(self.server.stats)
        if path == "/control/held":
            return self.send({"held": bool(self.server.until_held())})
        card = {"id": MODEL, "object": "model", "created": 0, "owned_by": "greenroom"}
        card["context_length"] = CONTEXT_TOKENS
        if path == "/v1/models":
            return self.send({"object": "list", "data": [card]})
        if path == f"/v1/models/{MODEL}":
            return self.send(card)
        return self.not_here()

    def do_POST(self):
        raw = self.rfile.read(int(self.headers.get("content-length") or 0))
        path = self.path.partition("?")[0].rstrip("/")
        if path == "/control/release":
            self.server.release()
            return self.send({})
        if path == "/control/summaries":
            return self.switch_summaries(json.loads(raw)["answer"])
        if path == "/v1/messages/count_tokens":
            return self.send({"input_tokens": max(1, len(raw) // 4)})
        body = json.loads(raw)
        if gemini := GEMINI_PATH.fullmatch(path):
            if gemini[1] == "countTokens":
                return self.send({"totalTokens": max(1, len(raw) // 4)})
            wire, writer = "gemini", Gemini
            body["stream"] = gemini[1] == "streamGenerateContent"
        elif path in WIRES:
            wire, writer = WIRES[path]
        else:
            return self.not_here()
        request = read_request(wire, body)
        self.server.requests.append(request)
        self.server.stats[PLURALS[request.kind]] += 1
        try:
            self.answer(request, writer)
        except (BrokenPipeError, ConnectionResetError):
            self.server.stats["clients_gone"] += 1
            self.close_connection = True
        return None

    def switch_summaries(self, answer):
        if answer not in SUMMARY_ANSWERS:
            return self.send_error_body(400, f"answer must be one of {SUMMARY_ANSWERS}")
        self.server.summaries = answer
        return self.send({})

    def answer(self, request, writer):
        failure = request.markers().get("fail")
        how = self.server.summaries if request.kind == "summary" else "text"
        if how == "hold":
            self.server.hold_summary()
        if how == "drop":
            raise ConnectionResetError("asked to drop it")
        if how == "fail":
            failure = 500
        if failure is not None:
            self.server.stats["failures"] += 1
            return self.send_error_body(int(failure or 500), "asked to fail")
        reply = make_reply(request)
        written = writer(reply, next(self.server.numbers))
        if not request.stream:
            return self.send(written.whole())
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for kind, data in written.events(self.server.paced(reply)):
            head = f"event: {kind}\n" if kind else ""
            text = data if isinstance(data, str) else json.dumps(data)
            self.send_chunk(f"{head}data: {text}\n\n".encode())
        return self.send_chunk(b"")

    def send_chunk(self, raw):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(raw), raw))
        self.wfile.flush()

    def not_here(self):
        self.server.stats[f"other {self.command} {self.path}"] += 1
        self.send_error_body(404, "not found")

    def send_error_body(self, code, message):
        self.send({"error": {"message": message, "type": "fake_error", "code": code}}, code)

    def send(self, body, code=200):
        raw = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


def main():
    parser = argparse.ArgumentParser(description="A deterministic model on loopback.")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free port")
    model = Model(parser.parse_args().port)
    print(json.dumps({"url": model.url}), flush=True)
    try:
        model.serve_forever()
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
