"""A local server that speaks enough of W&B's protocol for the real client, and fails on demand.

    with wandb_server() as server:
        subprocess.run([...], env=server.env())
        assert server.runs["id"].history == [...]
        server.fault = "refuse"

`read_offline` reads the file that an offline run leaves. Both speak for wandb 0.31.
"""

import gzip
import json
import os
import struct
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
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
BLOCK = 32 * 1024  # bytes of a block in a .wandb file


@dataclass
class Run:
    """What arrived of one run, over all its restarts."""

    id: str
    project: str = ""
    entity: str = ""
    display_name: str = ""
    group: str = ""
    job_type: str = ""
    notes: str = ""
    sweep: str = ""
    tags: list[str] = field(default_factory=list)
    raw_config: Json = field(default_factory=dict)  # as sent: {"lr": {"value": 0.1}, "_wandb": …}
    summary: Json = field(default_factory=dict)
    history: list[Json] = field(default_factory=list)  # with _step, _runtime and _timestamp
    events: list[Json] = field(default_factory=list)  # system metrics
    console: dict[int, str] = field(default_factory=dict)  # lines by number
    files: dict[str, bytes] = field(default_factory=dict)
    finished: bool = False
    exit_code: int | None = None
    preempting: bool = False

    @property
    def config(self) -> Json:
        return {key: item["value"] for key, item in self.raw_config.items() if key != "_wandb"}

    @property
    def rows(self) -> list[Json]:
        """The history without what wandb adds to it."""
        return [{k: v for k, v in row.items() if not k.startswith("_")} for row in self.history]

    def upsert(self, sent: Mapping[str, Any]) -> None:
        plain = {"project", "entity", "notes", "sweep", "tags"}
        names = {key: key for key in plain}
        names |= {"displayName": "display_name", "groupName": "group", "jobType": "job_type"}
        for key, name in names.items():
            if sent.get(key) is not None:
                setattr(self, name, sent[key])
        if sent.get("config"):
            self.raw_config = json.loads(sent["config"])
        if sent.get("summaryMetrics"):
            self.summary = json.loads(sent["summaryMetrics"])

    def stream(self, sent: Json) -> str:
        """Take one file_stream message; return what is wrong with it."""
        for name, part in sent.get("files", {}).items():
            offset, lines = part["offset"], part["content"]
            if name == "wandb-summary.json":
                self.summary = json.loads(lines[-1])
            elif name == "output.log":
                self.console |= dict(enumerate(lines, offset))
            else:
                rows = self.history if name == "wandb-history.jsonl" else self.events
                if offset > len(rows):
                    return f"{name} of {self.id} has {len(rows)} rows, the next is number {offset}"
                rows[offset : offset + len(lines)] = map(json.loads, lines)
        self.preempting |= sent.get("preempting", False)
        if sent.get("complete"):
            self.finished, self.exit_code = True, sent.get("exitcode")
        return ""

    def resume_status(self) -> Json:
        return {
            "id": self.id,
            "name": self.id,
            "displayName": self.display_name,
            "summaryMetrics": json.dumps(self.summary),
            "logLineCount": len(self.console),
            "historyLineCount": len(self.history),
            "eventsLineCount": len(self.events),
            "historyTail": json.dumps([json.dumps(row) for row in self.history[-1:]]),
            "eventsTail": json.dumps([json.dumps(row) for row in self.events[-1:]]),
            "config": json.dumps(self.raw_config),
            "tags": self.tags,
            "notes": self.notes,
            "wandbConfig": json.dumps({"t": 1}),  # says that the run is one of wandb
        }


@dataclass
class Artifact:
    """An artifact: `files` as uploaded, `manifest` names them all."""

    id: str
    name: str
    type: str
    run: str
    aliases: list[str]
    files: dict[str, bytes] = field(default_factory=dict)
    manifest: Json = field(default_factory=dict)
    committed: bool = False


class WandbServer:
    """The server's state and what a test does with it; made by `wandb_server`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder  # of the client's settings, cache and staging
        self.runs: dict[str, Run] = {}
        self.artifacts: list[Artifact] = []
        self.trials: list[Json] = []  # hyperparameters that agents of any sweep get, one by one
        self.sweeps: dict[str, str] = {}  # YAML by id; filled by `wandb sweep`, or by the test
        self.requests: list[str] = []  # GraphQL operations, and method and path of the others
        self.problems: list[str] = []  # what the client asked and this server doesn't know
        self.changed = threading.Condition()  # guards all of this
        self._fault: Fault = "none"
        self._http: ThreadingHTTPServer | None = None
        self.port = 0
        self._listen()
        self.url = f"http://127.0.0.1:{self.port}"

    def env(self) -> dict[str, str]:
        """A whole environment for the client: this server, no settings from outside, no probing."""
        outside = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
        return outside | {
            "WANDB_BASE_URL": self.url,
            "WANDB_API_KEY": API_KEY,
            "WANDB_CONFIG_DIR": str(self.folder / "config"),
            "WANDB_CACHE_DIR": str(self.folder / "cache"),
            "WANDB_DATA_DIR": str(self.folder / "data"),
            "WANDB_ARTIFACT_DIR": str(self.folder / "artifacts"),
            "WANDB_ERROR_REPORTING": "false",
            "WANDB_X_DISABLE_STATS": "true",
            "WANDB_X_DISABLE_MACHINE_INFO": "true",
            "WANDB_X_SAVE_REQUIREMENTS": "false",
            "WANDB_DISABLE_GIT": "true",
            "NETRC": str(self.folder / "netrc"),
            "NO_PROXY": "127.0.0.1",
        }

    @property
    def fault(self) -> Fault:
        return self._fault

    @fault.setter
    def fault(self, fault: Fault) -> None:
        """From now on every request meets this; "refuse" also frees the port until it is over."""
        with self.changed:
            before, self._fault = self._fault, fault
            self.changed.notify_all()
        if fault == "refuse":
            self.close()
        elif before == "refuse":
            self._listen()

    def back(self) -> None:
        self.fault = "none"

    def _listen(self) -> None:
        handler = type("Handler", (_Handler,), {"owner": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        self.port = self._http.server_port
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        if self._http:
            self._http.shutdown()
            self._http.server_close()
            self._http = None

    def graphql(self, query: str, variables: Json) -> Json:
        """Answer one operation. What isn't known is a problem, and an error as on a real server."""
        operation = query.replace("(", " ").replace("{", " ").split()[1]
        self.requests.append(operation)
        if answer := _ANSWERS.get(operation):
            return {"data": answer(self, variables)}
        self.problems.append(query)
        return {"errors": [{"message": f"unknown operation {operation}"}]}

    def upload(self, path: str, body: bytes) -> None:
        kind, owner, name = path.split("/", 2)
        if kind == "run":
            self.runs[owner].files[name] = body
        elif kind == "manifest":
            self.artifacts[int(owner)].manifest = json.loads(body)
        else:
            self.artifacts[int(owner)].files[name] = body

    def upload_url(self, kind: str, owner: str, name: str) -> str:
        return f"{self.url}/upload/{kind}/{owner}/{quote(name)}"


def _viewer(server: WandbServer, sent: Json) -> Json:
    teams = {"edges": [{"node": {"name": "tester"}}]}
    viewer = {"id": "1", "entity": "tester", "username": "tester", "email": "tester@example.com"}
    return {"viewer": viewer | {"flags": "{}", "teams": teams}}


def _resume_status(server: WandbServer, sent: Json) -> Json:
    run = server.runs.get(sent["name"])
    entity = {"id": "1", "name": sent.get("entity") or "tester"}
    model = {"id": "1", "name": sent["project"], "entity": entity}
    return {"model": model | {"bucket": run.resume_status() if run else None}}


def _upsert_bucket(server: WandbServer, sent: Json) -> Json:
    name = sent.get("name") or sent["id"]
    inserted = name not in server.runs
    run = server.runs.setdefault(name, Run(name, entity="tester", display_name=name))
    run.upsert(sent)
    run.finished, run.exit_code = False, None
    entity = {"id": "1", "name": run.entity}
    bucket = {
        "id": name,
        "name": name,
        "displayName": run.display_name,
        "description": "",
        "config": json.dumps(run.raw_config),
        "sweepName": run.sweep or None,
        "project": {"id": "1", "name": run.project, "entity": entity},
        "historyLineCount": len(run.history),
    }
    return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}


def _create_run_files(server: WandbServer, sent: Json) -> Json:
    run = sent["run"]
    files = [
        {"name": name, "uploadUrl": server.upload_url("run", run, name)} for name in sent["files"]
    ]
    return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": files}}


def _create_artifact(server: WandbServer, sent: Json) -> Json:
    given = sent["input"]
    name = (given.get("artifactCollectionNames") or [given.get("artifactCollectionName")])[0]
    aliases = [alias["alias"] for alias in given.get("aliases") or []]
    made = Artifact(
        str(len(server.artifacts)), name, given["artifactTypeName"], given["runName"], aliases
    )
    server.artifacts.append(made)
    artifact = {"id": made.id, "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
    return {"createArtifact": {"artifact": artifact}}


def _manifest(server: WandbServer, sent: Json) -> Json:
    made = sent.get("artifactID") or sent["artifactManifestID"]
    url = server.upload_url("manifest", made, "wandb_manifest.json")
    return {
        "artifactManifest": {
            "id": made,
            "file": {"id": made, "uploadUrl": url, "uploadHeaders": []},
        }
    }


def _create_artifact_files(server: WandbServer, sent: Json) -> Json:
    nodes = [
        {
            "storagePath": item["name"],
            "uploadUrl": server.upload_url("artifact", item["artifactID"], item["name"]),
            "uploadHeaders": [],
            "uploadMultipartUrls": None,
            "artifact": {"id": item["artifactID"]},
        }
        for item in sent["input"]["artifactFiles"]
    ]
    return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}


def _commit_artifact(server: WandbServer, sent: Json) -> Json:
    server.artifacts[int(sent["artifactID"])].committed = True
    return {"commitArtifact": {"artifact": {"id": sent["artifactID"], "digest": ""}}}


def _upsert_sweep(server: WandbServer, sent: Json) -> Json:
    name = sent.get("id") or f"sweep{len(server.sweeps)}"
    if sent.get("config"):
        server.sweeps[name] = sent["config"]
    entity = {"id": "1", "name": sent.get("entityName") or "tester"}
    project = {"id": "1", "name": sent.get("projectName") or "uncategorized", "entity": entity}
    sweep = {"name": name, "project": project}
    return {"upsertSweep": {"sweep": sweep, "configValidationWarnings": []}}


def _sweep(server: WandbServer, sent: Json) -> Json:
    name = sent["sweep"]
    sweep = {"id": name, "name": name, "state": "RUNNING", "config": server.sweeps[name]}
    return {"project": {"sweep": sweep | {"runs": {"edges": []}}}}


def _heartbeat(server: WandbServer, sent: Json) -> Json:
    commands: list[Json] = []
    if not json.loads(sent["runState"]):  # the agent is idle
        if server.trials:
            args = {key: {"value": value} for key, value in server.trials.pop(0).items()}
            number = sum(name == "Heartbeat" for name in server.requests)
            commands = [{"type": "run", "run_id": f"trial{number}", "args": args, "program": ""}]
        else:
            commands = [{"type": "exit"}]
    return {"agentHeartbeat": {"agent": {"id": sent["id"]}, "commands": json.dumps(commands)}}


_ANSWERS = {
    "Viewer": _viewer,
    "ServerFeaturesQuery": lambda server, sent: {"serverInfo": {"features": []}},
    "RunResumeStatus": _resume_status,
    "UpsertBucket": _upsert_bucket,
    "CreateRunFiles": _create_run_files,
    "ArtifactType": lambda server, sent: {"project": None},
    "CreateArtifact": _create_artifact,
    "CreateArtifactManifest": lambda server, sent: {
        "createArtifactManifest": _manifest(server, sent)
    },
    "UpdateArtifactManifest": lambda server, sent: {
        "updateArtifactManifest": _manifest(server, sent)
    },
    "CreateArtifactFiles": _create_artifact_files,
    "CommitArtifact": _commit_artifact,
    "UpsertSweep": _upsert_sweep,
    "SweepWithRuns": _sweep,
    "GetSweepState": _sweep,
    "CreateAgent": lambda server, sent: {"createAgent": {"agent": {"id": "agent"}}},
    "Heartbeat": _heartbeat,
}


class _Handler(BaseHTTPRequestHandler):
    """One request and one answer; HTTP/1.0, so that no connection outlives a fault."""

    owner: ClassVar[WandbServer]

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def _answer(self, status: int, content: Json) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _faulty(self) -> bool:
        """Do what the fault says; whether that was all."""
        server = self.owner
        if server.fault == "slow":
            time.sleep(SLOW_S)
        elif server.fault == "black hole":
            with server.changed:
                server.changed.wait_for(lambda: server.fault != "black hole")
            return True
        elif server.fault in {"401", "429", "500"}:
            self._answer(int(server.fault), {"errors": [{"message": f"fault {server.fault}"}]})
            return True
        return server.fault == "refuse"

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        with suppress(BrokenPipeError, ConnectionResetError):  # the client gave up waiting
            if not self._faulty():
                with self.owner.changed:
                    status, content = self._route(unquote(self.path), body)
                self._answer(status, content)

    do_GET = do_POST = do_PUT = _serve  # noqa: N815  # the names http.server calls

    def _route(self, path: str, body: bytes) -> tuple[int, Json]:
        server = self.owner
        if path == "/graphql":
            sent = json.loads(body)
            return 200, server.graphql(sent["query"], sent.get("variables") or {})
        server.requests.append(f"{self.command} {path}")
        if path.startswith("/upload/"):
            server.upload(path.removeprefix("/upload/"), body)
            return 200, {}
        if path.endswith("/file_stream"):
            wrong = server.runs[path.split("/")[-2]].stream(json.loads(body))
            if not wrong:
                return 200, {}
            server.problems.append(wrong)
            return 400, {"error": wrong}
        server.problems.append(f"{self.command} {path}")
        return 404, {"error": "no such page"}


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    """A server of one test's own, on a free port of 127.0.0.1."""
    with tempfile.TemporaryDirectory(prefix="wandb-server-") as folder:
        server = WandbServer(Path(folder))
        try:
            yield server
        finally:
            server.back()
            server.close()


@dataclass
class Offline:
    """What a .wandb file holds."""

    run_id: str = ""
    config: Json = field(default_factory=dict)
    summary: Json = field(default_factory=dict)
    history: list[Json] = field(default_factory=list)
    exit_code: int | None = None  # None: never finished
    torn: bool = False  # whether the file ends within a record


def _records(data: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log. ValueError where it is torn or damaged."""
    position, parts = 7, b""  # past the header
    while position < len(data):
        if BLOCK - position % BLOCK < 7:  # too little for a chunk: zeros
            position += BLOCK - position % BLOCK
            continue
        chunk = data[position : position + 7]
        if len(chunk) < 7:
            raise ValueError("a chunk without its header")
        checksum, size, kind = struct.unpack("<IHB", chunk)
        body = data[position + 7 : position + 7 + size]
        if len(body) < size or checksum != zlib.crc32(chunk[6:] + body):
            raise ValueError("a damaged chunk")
        parts += body
        position += 7 + size
        if kind in {1, 4}:  # a whole record, or the last part of one
            yield parts
            parts = b""
    if parts:
        raise ValueError("half a record")


def _values(items: Any) -> Json:
    """Key-value items of wandb's protobufs, nested keys joined by dots."""
    return {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def read_offline(path: Path) -> Offline:
    """Read a .wandb file, or the only one in a folder, as far as it is whole."""
    from wandb.proto import wandb_internal_pb2  # noqa: PLC0415  # slow, and few tests need it

    file = path if path.is_file() else next(path.rglob("*.wandb"))
    found = Offline()
    try:
        for data in _records(file.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(data)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                found.run_id = record.run.run_id
                found.config |= _values(record.run.config.update)
            elif kind == "config":
                found.config |= _values(record.config.update)
            elif kind == "history":
                found.history.append(_values(record.history.item))
            elif kind == "summary":
                found.summary |= _values(record.summary.update)
            elif kind == "exit":
                found.exit_code = record.exit.exit_code
    except ValueError:
        found.torn = True
    found.config.pop("_wandb", None)
    return found
