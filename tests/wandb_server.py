"""A local server that speaks enough of W&B's protocol for the real client, and fails on demand.

`read_offline` reads the file that an offline run leaves. Both are made for wandb 0.31.
"""

import json
import os
import re
import struct
import tempfile
import threading
import time
import zlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, Literal
from urllib.parse import quote, unquote

Json = dict[str, Any]
Fault = Literal["none", "401", "429", "500", "slow", "refuse", "black hole"]

API_KEY = "0123456789abcdef" * 3  # the client wants 40 characters or more
SLOW_S = 2.0  # what "slow" adds to every request
BLOCK = 32 * 1024  # bytes of a block of a .wandb file
MANIFEST = "wandb_manifest.json"
QUIET = ("X_DISABLE_STATS", "X_DISABLE_META", "X_DISABLE_MACHINE_INFO", "DISABLE_GIT")


@dataclass
class Run:
    """What arrived of one run, over all its restarts."""

    id: str
    display_name: str
    project: str = ""
    entity: str = "tester"
    group: str = ""
    job_type: str = ""
    notes: str = ""
    sweep: str = ""
    tags: list[str] = field(default_factory=list)
    raw_config: Json = field(default_factory=dict)  # as sent: {"lr": {"value": 0.1}, "_wandb": …}
    lines: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    files: dict[str, bytes] = field(default_factory=dict)
    finished: bool = False
    exit_code: int | None = None
    preempting: bool = False

    @property
    def config(self) -> Json:
        return {key: item["value"] for key, item in self.raw_config.items() if key != "_wandb"}

    @property
    def summary(self) -> Json:
        return dict(json.loads((self.lines["wandb-summary.json"] or ["{}"])[0]))

    @property
    def history(self) -> list[Json]:
        """Rows in their order, with wandb's _step, _runtime and _timestamp."""
        return [json.loads(line) for line in self.lines["wandb-history.jsonl"]]

    @property
    def rows(self) -> list[Json]:
        """The history as it was logged."""
        return [{k: row[k] for k in row if not k.startswith("_")} for row in self.history]

    def stream(self, sent: Json) -> str:
        """Take a file_stream message; return what is wrong with it."""
        for name, part in sent.get("files", {}).items():
            lines, offset = self.lines[name], part["offset"]
            if offset > len(lines):
                return f"{self.id}: line {offset} of {name} after {len(lines)} lines"
            lines[offset : offset + len(part["content"])] = part["content"]
        self.preempting |= sent.get("preempting", False)
        if sent.get("complete"):
            self.finished, self.exit_code = True, sent["exitcode"]
        return ""

    def upsert(self, sent: Json) -> None:
        """Take the variables of an UpsertBucket: a start, a resume, or a change of config."""
        renamed = {"displayName": "display_name", "groupName": "group", "jobType": "job_type"}
        for key in ("project", "entity", "notes", "sweep", "tags", *renamed):
            if sent.get(key) is not None:
                setattr(self, renamed.get(key, key), sent[key])
        self.raw_config = json.loads(sent.get("config") or "{}") or self.raw_config
        if self.finished:  # and goes on now; a change of config comes in mid-run, too
            self.finished, self.exit_code, self.preempting = False, None, False

    def bucket(self) -> Json:
        """The run as GraphQL tells of it."""
        bucket: Json = {"id": self.id, "name": self.id, "displayName": self.display_name}
        bucket |= {"tags": self.tags, "notes": self.notes, "sweepName": self.sweep or None}
        bucket |= {"config": json.dumps(self.raw_config), "wandbConfig": '{"t": 1}'}
        bucket |= {"summaryMetrics": json.dumps(self.summary)}
        bucket |= {"logLineCount": len(self.lines["output.log"])}
        for kind in ("history", "events"):
            lines = self.lines[f"wandb-{kind}.jsonl"]
            bucket |= {f"{kind}LineCount": len(lines), f"{kind}Tail": json.dumps(lines[-1:])}
        return bucket | {"project": _project(self.project, self.entity)}

    def public(self) -> Json:
        """What the public API asks for beside that."""
        state = "running" if not self.finished else "failed" if self.exit_code else "finished"
        user = {"name": "tester", "username": "tester"}
        return {"projectId": "1", "state": state, "user": user, "historyKeys": None}


@dataclass
class Artifact:
    """A version of an artifact; `files` as uploaded, with wandb_manifest.json."""

    name: str
    type: str
    run: str
    aliases: list[str]
    files: dict[str, bytes] = field(default_factory=dict)
    committed: bool = False


def _project(name: str, entity: str | None) -> Json:
    return {"id": "1", "name": name, "entity": {"id": "1", "name": entity or "tester"}}


class WandbServer:
    """All that arrived, and `fault`, which a test may set at any time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder  # for the client's settings, cache and staging
        self.runs: dict[str, Run] = {}
        self.artifacts: list[Artifact] = []
        self.sweeps: dict[str, str] = {}  # YAML by id, from `wandb sweep`
        self.trials: list[Json] = []  # hyperparameters, handed out one by one to any `wandb agent`
        self.requests: list[str] = []  # GraphQL operations; method and path of the others
        self.problems: list[str] = []  # what the client asked and this server doesn't know
        self.lock = threading.Lock()  # one request at a time
        self._fault: Fault = "none"
        self.port = 0
        self._listen()
        self.url = f"http://127.0.0.1:{self.port}"

    def env(self) -> dict[str, str]:
        """A whole environment for the client: this server, and nothing of W&B's from outside."""
        env = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
        env |= {f"WANDB_{name}": "true" for name in QUIET}
        env |= {f"WANDB_{name}": "false" for name in ("ERROR_REPORTING", "X_SAVE_REQUIREMENTS")}
        for name in ("CONFIG", "CACHE", "DATA", "ARTIFACT"):
            env[f"WANDB_{name}_DIR"] = str(self.folder)
        env |= {"NETRC": str(self.folder / "netrc"), "NO_PROXY": "127.0.0.1"}
        return env | {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": API_KEY}

    @property
    def fault(self) -> Fault:
        return self._fault

    @fault.setter
    def fault(self, fault: Fault) -> None:
        before, self._fault = self._fault, fault
        if before != "refuse" == fault:
            self._http.shutdown()
            self._http.server_close()
        elif before == "refuse" != fault:
            self._listen()

    def back(self) -> None:
        self.fault = "none"

    def _listen(self) -> None:
        handler = type("Handler", (_Handler,), {"owner": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        self.port = self._http.server_port
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Json]:
        """Take one request; give status and content."""
        if path == "/graphql":
            sent = json.loads(body)
            name = re.findall(r"(?:query|mutation) (\w+)", sent["query"])[0]
            self.requests.append(name)
            for answer in (self._of_runs, self._of_artifacts, self._of_sweeps):
                if data := answer(name, sent.get("variables") or {}):
                    return 200, {"data": data}
            return 400, self._problem(sent["query"])
        self.requests.append(f"{method} {path}")
        if path.startswith("/upload/"):
            kind, owner, name = path.split("/", 4)[2:]
            known = self.runs[owner] if kind == "runs" else self.artifacts[int(owner)]
            known.files[name] = body
        elif not path.endswith("/file_stream"):
            return 404, self._problem(f"{method} {path}")
        elif wrong := self.runs[path.split("/")[-2]].stream(json.loads(body)):
            return 400, self._problem(wrong)
        return 200, {}

    def _problem(self, words: str) -> Json:
        self.problems.append(words)
        return {"errors": [{"message": words}]}

    def _of_runs(self, operation: str, sent: Json) -> Json | None:  # noqa: PLR0911  # a table
        """GraphQL's data for the operations that concern runs."""
        match operation:
            case "Viewer":
                user = {"id": "1", "entity": "tester", "username": "tester", "email": "t@localhost"}
                return {"viewer": {**user, "flags": "{}", "teams": {"edges": []}}}
            case "ServerFeaturesQuery":
                return {"serverInfo": {"features": []}}
            case "RunResumeStatus":
                run = self.runs.get(sent["name"])
                model = _project(sent["project"], sent.get("entity"))
                return {"model": {**model, "bucket": run.bucket() if run else None}}
            case "UpsertBucket":
                inserted = sent["name"] not in self.runs
                run = self.runs.setdefault(sent["name"], Run(sent["name"], sent["name"]))
                run.upsert(sent)
                return {"upsertBucket": {"bucket": run.bucket(), "inserted": inserted}}
            case "Run":
                known = self.runs.get(sent["name"])
                return {"project": {"run": known and {**known.bucket(), **known.public()}}}
            case "CreateRunFiles":
                files = [self._file("runs", sent["run"], name) for name in sent["files"]]
                same = {"runID": sent["run"], "uploadHeaders": []}
                return {"createRunFiles": {**same, "files": files}}
        return None

    def _file(self, kind: str, owner: str, name: str) -> Json:
        """A file that the client may upload now."""
        url = f"{self.url}/upload/{kind}/{owner}/{quote(name)}"
        file = {"id": owner, "name": name, "storagePath": name, "artifact": {"id": owner}}
        return {**file, "uploadUrl": url, "uploadHeaders": [], "uploadMultipartUrls": None}

    def _of_artifacts(self, operation: str, sent: Json) -> Json | None:
        owner, given = sent.get("artifactID", ""), sent.get("input", {})
        match operation:
            case "ArtifactType":
                return {"project": None}
            case "CreateArtifact":
                name, kind = given["artifactCollectionName"], given["artifactTypeName"]
                aliases = [alias["alias"] for alias in given["aliases"]]
                self.artifacts.append(Artifact(name, kind, given["runName"], aliases))
                made = {"id": f"{len(self.artifacts) - 1}", "state": "PENDING"}
                return {"createArtifact": {"artifact": {**made, "artifactSequence": {}}}}
            case "CreateArtifactManifest":
                manifest = {"id": owner, "file": self._file("artifacts", owner, MANIFEST)}
                return {"createArtifactManifest": {"artifactManifest": manifest}}
            case "CreateArtifactFiles":
                asked = [(file["artifactID"], file["name"]) for file in given["artifactFiles"]]
                edges = [{"node": self._file("artifacts", *file)} for file in asked]
                return {"createArtifactFiles": {"files": {"edges": edges}}}
            case "CommitArtifact":
                self.artifacts[int(owner)].committed = True
                return {"commitArtifact": {"artifact": {"id": owner, "digest": ""}}}
        return None

    def _of_sweeps(self, operation: str, sent: Json) -> Json | None:
        match operation:
            case "UpsertSweep":
                name = f"sweep{len(self.sweeps)}"
                self.sweeps[name] = sent["config"]
                sweep = {"name": name, "project": _project(sent["projectName"], sent["entityName"])}
                return {"upsertSweep": {"sweep": sweep, "configValidationWarnings": []}}
            case "SweepWithRuns":
                sweep = {"id": sent["sweep"], "name": sent["sweep"], "state": "RUNNING"}
                sweep |= {"config": self.sweeps[sent["sweep"]], "runs": {"edges": []}}
                return {"project": {"sweep": sweep}}
            case "CreateAgent":
                return {"createAgent": {"agent": {"id": sent["sweep"]}}}
            case "Heartbeat":
                commands = [] if json.loads(sent["runState"]) else [self._next_trial(sent["id"])]
                answer = {"agent": {"id": sent["id"]}, "commands": json.dumps(commands)}
                return {"agentHeartbeat": answer}
        return None

    def _next_trial(self, sweep: str) -> Json:
        if not self.trials:
            return {"type": "exit"}
        args = {key: {"value": value} for key, value in self.trials.pop(0).items()}
        name = f"trial{sum(request == 'Heartbeat' for request in self.requests)}"
        program = re.search(r"(?m)^program: (.*)$", self.sweeps[sweep])
        return {"type": "run", "run_id": name, "args": args, "program": program and program[1]}


class _Handler(BaseHTTPRequestHandler):
    """One request and one answer: HTTP/1.0, so that no connection outlives a fault."""

    owner: ClassVar[WandbServer]

    def log_message(self, *args: object) -> None: ...

    def serve(self) -> None:
        server = self.owner
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if server.fault == "slow":
            time.sleep(SLOW_S)
        if server.fault == "black hole":
            while server.fault == "black hole":
                time.sleep(0.1)
            return  # never taken: the client sent it again long ago
        if server.fault in {"401", "429", "500"}:
            status, content = int(server.fault), {"errors": [{"message": server.fault}]}
        else:
            with server.lock:
                status, content = server.answer(self.command, unquote(self.path), body)
        with suppress(OSError):  # the client gave up waiting
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

    do_GET = do_POST = do_PUT = serve  # noqa: N815  # the names that http.server calls


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    """A server of one test's own on a free port of 127.0.0.1."""
    with tempfile.TemporaryDirectory(prefix="wandb-server-", ignore_cleanup_errors=True) as folder:
        server = WandbServer(Path(folder))
        try:
            yield server
        finally:
            server.fault = "refuse"


@dataclass
class Offline:
    """What a .wandb file holds."""

    run_id: str = ""
    config: Json = field(default_factory=dict)
    summary: Json = field(default_factory=dict)
    history: list[Json] = field(default_factory=list)
    exit_code: int | None = None  # None: the run never finished
    torn: bool = False  # it ends within a record, or is damaged where reading stopped


def _records(data: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log behind 7 bytes of header; ValueError where it is torn."""
    position, record = 7, b""
    while position < len(data):
        if BLOCK - position % BLOCK < 7:  # no room for a chunk's head: zeros up to the next block
            position += BLOCK - position % BLOCK
            continue
        head = data[position : position + 7].ljust(7, b"\0")
        checksum, size, kind = struct.unpack("<IHB", head)
        body = data[position + 7 : position + 7 + size]
        if checksum != zlib.crc32(head[6:] + body):
            raise ValueError(f"torn at byte {position}")
        record += body
        position += 7 + size
        if kind in {1, 4}:  # a whole record, or the last part of one
            yield record
            record = b""
    if record:
        raise ValueError("torn between chunks")


def _values(items: Any) -> Json:
    return {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def read_offline(path: Path) -> Offline:
    """Read a .wandb file, or the only one under a folder, as far as it is whole."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]  # made at import

    found = Offline(torn=True)
    file = path if path.is_file() else next(path.rglob("*.wandb"))
    with suppress(ValueError):
        for record in map(Record.FromString, _records(file.read_bytes())):
            found.run_id = record.run.run_id or found.run_id
            found.config |= _values([*record.run.config.update, *record.config.update])
            found.summary |= _values(record.summary.update)
            if record.HasField("history"):
                found.history.append(_values(record.history.item))
            if record.HasField("exit"):
                found.exit_code = record.exit.exit_code
        found.torn = False
    found.config.pop("_wandb", None)
    return found
