"""The test harness: the model, the agents' homes, the server, and its event stream.

Everything runs as real processes on 127.0.0.1. Each test marks its processes by an environment
variable, so that the tests find survivors in /proc, also without their parents.
"""

import http.client
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.parse
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent.parent
MARK = "GREENROOM_TEST_MARK"
MODEL = "fake-model"
CONTEXT_TOKENS = 64_000  # the minimum that hermes accepts
CLAUDE_CONTEXT_TOKENS = 100_000  # the minimum that claude accepts

READY_S = 30
STOP_S = 60  # above `drain_timeout` and the escalation after it
LEFTOVER_S = 5
WAIT_S = 60
CHECK_S = 120
LOG_TAIL_LINES = 80


def binary():
    """Returns the greenroom binary: `GREENROOM_BIN`, else Cargo's release build, else debug."""
    named = os.environ.get("GREENROOM_BIN")
    candidates = [Path(named)] if named else [
        PROJECT / "target" / profile / "greenroom" for profile in ("release", "debug")
    ]
    for candidate in candidates:
        if os.access(candidate, os.X_OK):
            return candidate.resolve()
    looked = ", ".join(str(candidate) for candidate in candidates)
    raise FileNotFoundError(f"no greenroom binary ({looked}): cargo build --release")


# ---- agents ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Agent:
    """A real agent: its profile in `config/agents.example.toml`, its own configuration, and its
    differences from the others.

    `write_home` writes its own configuration and may return more variables for its environment.
    It compacts by itself from `full` tokens on, and not at `nearly_full`; hermes uses its own count
    between turns, and the model's inside a turn.
    """

    name: str
    home_variable: str
    write_home: object
    env: dict = field(default_factory=dict)
    shell_call: object = None
    full: int = 0
    nearly_full: int = 0
    example: str = ""
    always_restores: bool = True
    asks: bool = True
    turns_before_compaction: int = 2

    def profile(self, home, model_url, mark):
        """Writes the agent's own configuration to `home` and returns its profile as TOML.

        The profile is the example's, with the variables of the test in place of the operator's.
        """
        home.mkdir(parents=True)
        more = self.write_home(home, model_url) or {}
        example = EXAMPLES[self.example or self.name]
        own = {self.home_variable: str(home), MARK: mark} | self.env | more
        # The directory that an agent's own variable names is not in the HOME of its sandbox.
        changed = {"env": example.get("env", {}) | own, "sandbox_write": [str(home)]}
        profile = {key: example[key] for key in example if key not in OPERATORS} | changed
        lines = [f"{key} = {as_toml(value)}\n" for key, value in profile.items()]
        return f"[agents.{self.name}]\n" + "".join(lines)


EXAMPLES = tomllib.loads((PROJECT / "config" / "agents.example.toml").read_text())["agents"]
# Keys that name the operator's machine.
OPERATORS = ("env", "env_pass", "cwd_roots", "sandbox_read", "sandbox_write")


def as_toml(value):
    """Returns a value in TOML, on one line."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {as_toml(part)}" for key, part in value.items()) + " }"
    return json.dumps(value)  # text, numbers and lists of them are the same in both


def write_hermes_home(home, model_url, in_place=True):
    (home / "config.yaml").write_text(
        "model:\n"
        f"  default: {MODEL}\n"
        "  provider: custom\n"
        f"  base_url: {model_url}/v1\n"
        "  api_key: unused\n"
        f"  context_length: {CONTEXT_TOKENS}\n"
        "compression:\n"
        f"  in_place: {json.dumps(in_place)}\n"
    )


def write_codex_home(home, model_url):
    """A provider on loopback, a model card (else codex warns in the answer), nothing by network."""
    card = {
        "slug": MODEL,
        "display_name": "Fake",
        "base_instructions": "Answer.",
        "context_window": CONTEXT_TOKENS,
        "supported_reasoning_levels": [],
        "experimental_supported_tools": [],
        "shell_type": "unified_exec",
        "visibility": "list",
        "supported_in_api": True,
        "priority": 1,
        "support_verbosity": False,
        "truncation_policy": {"mode": "tokens", "limit": 10_000},
    }
    catalog = home / "models.json"
    catalog.write_text(json.dumps({"models": [card]}))
    (home / "config.toml").write_text(
        f'model = "{MODEL}"\n'
        'model_provider = "fake"\n'
        f"model_catalog_json = {json.dumps(str(catalog))}\n"
        "check_for_update_on_startup = false\n"
        "[analytics]\n"
        "enabled = false\n"
        "[features]\n"
        "plugins = false\n"
        "shell_snapshot = false\n"
        "[model_providers.fake]\n"
        'name = "fake"\n'
        f'base_url = "{model_url}/v1"\n'
        'wire_api = "responses"\n'
        "request_max_retries = 0\n"
        "stream_max_retries = 0\n"
    )


def write_claude_home(_home, model_url):
    return {"ANTHROPIC_BASE_URL": model_url}


def write_gemini_settings(folder, more):
    """The settings of gemini, and of qwen, which has the same ones."""
    settings = {
        "general": {"enableAutoUpdate": False, "disableAutoUpdate": True},
        "privacy": {"usageStatisticsEnabled": False},
        "telemetry": {"enabled": False},
        **more,
    }
    folder.mkdir()
    (folder / "settings.json").write_text(json.dumps(settings))


def write_qwen_home(home, model_url):
    more = {
        "model": {"generationConfig": {"contextWindowSize": CONTEXT_TOKENS}},
        "memory": {  # else it asks the model for more than answers
            "enableManagedAutoMemory": False,
            "enableManagedAutoDream": False,
            "enableAutoSkill": False,
        },
    }
    write_gemini_settings(home / ".qwen", more)
    return {"OPENAI_BASE_URL": f"{model_url}/v1"}


def write_gemini_home(home, model_url):
    write_gemini_settings(home / ".gemini", {"model": {"name": "gemini-2.5-flash"}})
    return {"GOOGLE_GEMINI_BASE_URL": model_url}


def write_opencode_home(home, model_url):
    """A provider on loopback. Its folders of data, cache and state are below its home."""
    settings = {
        "model": f"fake/{MODEL}",
        "small_model": f"fake/{MODEL}",
        "autoupdate": False,
        "share": "disabled",
        "enabled_providers": ["fake"],
        "provider": {
            "fake": {
                "npm": "@ai-sdk/openai-compatible",
                "name": "Fake",
                "options": {"baseURL": f"{model_url}/v1", "apiKey": "unused"},
                "models": {
                    MODEL: {
                        "name": "Fake",
                        "tool_call": True,
                        "limit": {"context": CONTEXT_TOKENS, "output": 4096},
                    }
                },
            }
        },
    }
    (home / "opencode").mkdir()
    (home / "opencode" / "opencode.json").write_text(json.dumps(settings))
    folders = {"XDG_DATA_HOME": "data", "XDG_CACHE_HOME": "cache", "XDG_STATE_HOME": "state"}
    return {name: str(home / folder) for name, folder in folders.items()}


def write_pi_home(home, model_url):
    """A provider on loopback. pi-acp keeps its map of sessions below HOME."""
    card = {
        "id": MODEL,
        "name": "Fake",
        "reasoning": False,
        "input": ["text"],
        "contextWindow": CONTEXT_TOKENS,
        "maxTokens": 4096,
        "cost": {"input": 0, "output": 0, "cacheRead": 0, "cacheWrite": 0},
    }
    provider = {
        "baseUrl": f"{model_url}/v1",
        "api": "openai-completions",
        "apiKey": "unused",
        "models": [card],
    }
    (home / "models.json").write_text(json.dumps({"providers": {"fake": provider}}))
    (home / "settings.json").write_text(
        json.dumps(
            {
                "defaultProvider": "fake",
                "defaultModel": MODEL,
                "quietStartup": True,
                "compaction": {"keepRecentTokens": 100},  # else a short session is not compacted
            }
        )
    )
    return {"HOME": str(home)}


def hermes_shell_call(command):
    return "terminal", {"command": command}


def claude_shell_call(command):
    return "Bash", {"command": command, "description": "the test asks for it"}


def codex_shell_call(command):
    ask = {"sandbox_permissions": "require_escalated", "justification": "the test asks for it"}
    return "exec_command", {"cmd": command} | ask


def qwen_shell_call(command):
    return "run_shell_command", {"command": command, "is_background": False}


def opencode_shell_call(command):
    return "bash", {"command": command, "description": "the test asks for it"}


def pi_shell_call(command):
    return "bash", {"command": command}


HERMES = Agent(
    name="hermes",
    home_variable="HERMES_HOME",
    write_home=write_hermes_home,
    shell_call=hermes_shell_call,
    full=60_000,
)
HERMES_ROTATING = replace(
    HERMES,
    name="hermes-rotating",
    example="hermes",
    write_home=partial(write_hermes_home, in_place=False),
)
CODEX = Agent(
    name="codex",
    home_variable="CODEX_HOME",
    write_home=write_codex_home,
    shell_call=codex_shell_call,
    full=60_000,
    nearly_full=45_000,
)
CLAUDE = Agent(
    name="claude",
    home_variable="CLAUDE_CONFIG_DIR",
    write_home=write_claude_home,
    env={
        "ANTHROPIC_API_KEY": "unused",
        "CLAUDE_CODE_AUTO_COMPACT_WINDOW": str(CLAUDE_CONTEXT_TOKENS),
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_MAX_RETRIES": "0",
        "DISABLE_AUTOUPDATER": "1",
    },
    shell_call=claude_shell_call,
    full=95_000,
    nearly_full=60_000,
)
QWEN = Agent(
    name="qwen",
    home_variable="HOME",
    write_home=write_qwen_home,
    env={"OPENAI_API_KEY": "unused", "OPENAI_MODEL": MODEL},
    shell_call=qwen_shell_call,
)
GEMINI = Agent(
    name="gemini",
    home_variable="HOME",
    write_home=write_gemini_home,
    env={"GEMINI_API_KEY": "unused"},
    shell_call=qwen_shell_call,
    always_restores=False,  # it finds none that was begun in the same minute
)
OPENCODE = Agent(
    name="opencode",
    home_variable="XDG_CONFIG_HOME",
    write_home=write_opencode_home,
    env={"OPENCODE_DISABLE_MODELS_FETCH": "1", "OPENCODE_DISABLE_AUTOUPDATE": "1"},
    shell_call=opencode_shell_call,
)
PI = Agent(
    name="pi",
    home_variable="PI_CODING_AGENT_DIR",
    write_home=write_pi_home,
    env={"PI_OFFLINE": "1"},
    asks=False,
    shell_call=pi_shell_call,
)
AGENTS = [HERMES, CODEX]  # the agents of every test in test_agents.py
ALL = [HERMES, CODEX, CLAUDE, OPENCODE, GEMINI, QWEN, PI]
PROFILES = [*AGENTS, HERMES_ROTATING, CLAUDE, QWEN, GEMINI, OPENCODE, PI]


# ---- processes ------------------------------------------------------------------------------


def marked(mark):
    """Pids of the processes that carry `mark` in their environment, zombies not counted."""
    needle = f"{MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environ = (entry / "environ").read_bytes()
        except OSError:
            continue
        if needle in environ.split(b"\0"):
            found.append(int(entry.name))
    return found


def command_of(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return "(gone)"


def wait_gone(pid, deadline):
    """Waits until process `pid` has ended or `deadline` has passed; it need not be our child."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        select.select([handle], [], [], max(0, deadline - time.monotonic()))
    finally:
        os.close(handle)


def leftovers(mark):
    """Waits for the marked processes to end, and returns those that outlast `LEFTOVER_S`."""
    deadline = time.monotonic() + LEFTOVER_S
    while pids := marked(mark):
        if deadline <= time.monotonic():
            return pids
        wait_gone(pids[0], deadline)
    return []


class Model:
    """The fake model as a process of its own."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "fake_llm.py")], stdout=subprocess.PIPE, text=True
        )
        self.url = json.loads(self.process.stdout.readline())["url"]

    def stop(self):
        self.process.terminate()
        self.process.wait(READY_S)
        self.process.stdout.close()

    def release(self):
        """Releases the answers that `[[hold]]` holds back."""
        fetch("POST", self.url + "/control/release")

    def turns(self):
        """Returns the requests that were turns, oldest first."""
        requests = fetch("GET", self.url + "/control/requests").body
        return [request for request in requests if request["kind"] == "turn"]

    def answer_summaries(self, how):
        """Sets the answer to summaries: `text`, `fail`, `drop` or `hold`, see `fake_llm.py`."""
        answer = fetch("POST", self.url + "/control/summaries", {"answer": how})
        assert answer.status == 200, answer

    def until_summary_held(self):
        """Waits until an agent waits for a summary that is held back."""
        assert fetch("GET", self.url + "/control/held", timeout=WAIT_S).body["held"]

    def stats(self):
        return fetch("GET", self.url + "/control/stats").body


# ---- HTTP -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict
    body: object


def fetch(method, url, body=None, timeout=READY_S):
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout)
    try:
        headers = {} if body is None else {"content-type": "application/json"}
        raw = None if body is None else json.dumps(body)
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.request(method, target, raw, headers)
        response = connection.getresponse()
        text = response.read()
        return Answer(response.status, dict(response.headers), json.loads(text) if text else None)
    finally:
        connection.close()


class Events:
    """The Server-Sent Events of one group. Keeps every frame that it has read, in order."""

    def __init__(self, server, group, after):
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=WAIT_S)
        self.connection.request("GET", f"/v1/groups/{group}/events?after={after}")
        self.response = self.connection.getresponse()
        assert self.response.status == 200, self.response.read()
        assert self.response.headers.get_content_type() == "text/event-stream"
        self.frames = []

    def close(self):
        self.response.close()
        self.connection.close()

    def until(self, wanted):
        """Reads up to the first frame for which `wanted` holds, and returns it.

        Nothing that the tests wait for comes after a task's end, so that is where waiting ends too.
        """
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            frame = self._next()
            if frame and wanted(frame):
                return frame
            if frame and frame["kind"] == "greenroom/task_ended":
                break
        kinds = [frame["kind"] for frame in self.frames]
        raise AssertionError(f"the frame did not come, by the task's end or {WAIT_S} s: {kinds}")

    def _next(self):
        """Returns one event, or None for a comment or an event that is no frame."""
        fields = {}
        while line := self.response.readline():
            text = line.decode().rstrip("\r\n")
            if not text:
                break
            name, _, value = text.partition(":")
            value = value.removeprefix(" ")
            fields[name] = f"{fields[name]}\n{value}" if name in fields else value
        else:
            raise AssertionError("the event stream ended")
        if "id" not in fields or "data" not in fields:
            return None
        frame = json.loads(fields["data"])
        assert fields["id"] == str(frame["seq"]), fields
        assert fields["event"] == frame["kind"], fields
        self.frames.append(frame)
        return frame


class Server:
    """`greenroom serve` on a free port, over one data directory; it can be restarted."""

    def __init__(self, directory, model, agents, **defaults):
        self.mark = uuid.uuid4().hex
        self.directory = directory
        self.port = free_port()
        self.log = directory / "server.log"
        self.config = directory / "greenroom.toml"
        self.process = None
        (directory / "home").mkdir()
        defaults = {"agent": agents[0].name} | defaults
        profiles = [
            agent.profile(directory / agent.name, model.url, self.mark) for agent in agents
        ]
        self.config.write_text(
            f'[server]\nlisten = "127.0.0.1:{self.port}"\ndrain_timeout = "5s"\n\n'
            f"[storage]\nurl = {json.dumps(f'sqlite:{directory}/data/greenroom.db')}\n\n"
            "[defaults]\n"
            + "".join(f"{key} = {json.dumps(value)}\n" for key, value in defaults.items())
            + "\n".join(["", *profiles])
        )

    def environment(self):
        path = [HERE / ".venv" / "bin", HERE / "node_modules" / ".bin", os.environ["PATH"]]
        return {
            "PATH": os.pathsep.join(str(part) for part in path),
            "HOME": str(self.directory / "home"),
            "LANG": "C.UTF-8",
            MARK: self.mark,
        }

    def check_agents(self):
        """Runs `greenroom agents check`; returns its exit code and its findings by profile."""
        ended = subprocess.run(
            [str(binary()), "agents", "check", "--json", "--config", str(self.config)],
            cwd=self.directory,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=CHECK_S,
        )
        found = [json.loads(line) for line in ended.stdout.splitlines()]
        return ended.returncode, {entry["profile"]: entry for entry in found}

    def start(self):
        """Starts the server and waits until it is ready."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [str(binary()), "serve", "--config", str(self.config)],
                cwd=self.directory,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + READY_S
        while not self._is_ready():
            assert self.process.poll() is None, f"the server ended with {self.process.returncode}"
            assert time.monotonic() < deadline, f"the server is not ready after {READY_S} s"
            time.sleep(0.05)

    def _is_ready(self):
        try:
            return fetch("GET", self.url("/readyz")).status == 200
        except OSError:
            return False

    def stop(self):
        """Stops the server and returns its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_S)

    def end(self):
        """Kills the remaining processes of the server and its agents, at the end of a test."""
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pid in marked(self.mark):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it ended by itself meanwhile

    def is_running(self):
        return self.process is not None and self.process.poll() is None

    def url(self, path):
        return f"http://127.0.0.1:{self.port}{path}"

    def log_tail(self):
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-LOG_TAIL_LINES:])

    def until_hermes_logs(self, text):
        """Waits until hermes has written `text` to its own log."""
        log = self.directory / HERMES.name / "logs" / "agent.log"
        deadline = time.monotonic() + READY_S
        while text not in log.read_text(errors="replace"):
            assert time.monotonic() < deadline, f"hermes does not log {text!r}"
            time.sleep(0.05)

    def logged_pids(self, group):
        """Returns every `pid=` in the log on a line about `group`."""
        word = re.compile(rf"(?<![\w.:@-]){re.escape(group)}(?![\w.:@-])")
        lines = self.log.read_text(errors="replace").splitlines()
        about = [line for line in lines if word.search(line)]
        return {int(pid) for line in about for pid in re.findall(r"\bpid=(\d+)", line)}

    # The calls of the API that the tests use.

    def get(self, path, timeout=READY_S):
        answer = fetch("GET", self.url(path), timeout=timeout)
        assert answer.status == 200, answer
        return answer.body

    def post(self, path, body=None, expect=(200, 202), timeout=READY_S):
        answer = fetch("POST", self.url(path), {} if body is None else body, timeout=timeout)
        assert answer.status in expect, answer
        return answer.body

    def create(self, group, agent, **settings):
        answer = fetch("PUT", self.url(f"/v1/groups/{group}"), {"agent": agent.name} | settings)
        assert answer.status == 201, answer
        return answer.body

    def group(self, group):
        return self.get(f"/v1/groups/{group}")

    def submit(self, group, prompt):
        """Enqueues a turn and returns its task at once."""
        return self.post(f"/v1/groups/{group}/turns", {"prompt": prompt}, expect=(202,))

    def turn(self, group, prompt):
        """Runs a turn to its end and returns its task."""
        path = f"/v1/groups/{group}/turns?wait={WAIT_S}"
        return self.post(path, {"prompt": prompt}, expect=(200,), timeout=WAIT_S + READY_S)

    def settled(self, task):
        """Waits until `task` is terminal and returns it."""
        return self.get(f"/v1/tasks/{task['id']}?wait={WAIT_S}", timeout=WAIT_S + READY_S)

    def order_compaction(self, group):
        """Enqueues a compaction and returns its task at once."""
        return self.post(f"/v1/groups/{group}/compactions", expect=(202,))

    def compact(self, group):
        """Runs a compaction to its end and returns its task."""
        return self.settled(self.order_compaction(group))

    def list(self, path, query=""):
        """Returns a whole list, page by page."""
        items, cursor = [], ""
        while cursor is not None:
            page = self.get(f"{path}?limit=1000&{query}{cursor}")
            items += page["items"]
            following = page["next_cursor"]
            cursor = following and f"&cursor={urllib.parse.quote(following)}"
        return items

    def frames(self, group):
        """Returns the whole transcript."""
        return self.list(f"/v1/groups/{group}/frames")

    def tasks(self, group, query):
        return self.list(f"/v1/groups/{group}/tasks", query)

    def compactions(self, group):
        """Returns the group's compactions, newest first."""
        return self.list(f"/v1/groups/{group}/compactions")

    def segments(self, group):
        """Returns the group's segments, oldest first."""
        return self.list(f"/v1/groups/{group}/segments")

    @contextmanager
    def events(self, group, after=0):
        stream = Events(self, group, after)
        try:
            yield stream
        finally:
            stream.close()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
