"""Models over HTTP: the answers of `bistil.load`, together where several wait; limits, token, slow clients, the end."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib.resources import files

import pytest
import tiny
import torch
from forking import fork
from task_models import LABELS, TAGS, TEXTS, exported, model_in

import bistil
from bistil.errors import InputError
from bistil.prediction.predictor import Wanted
from bistil.serving.settings import TOKEN, Limits, read_token

pytest.importorskip("fastapi", reason="pip install 'bistil[serve]'")

from fastapi.testclient import TestClient

from bistil.cli import main
from bistil.serving.app import PAGE, make_app
from bistil.serving.batching import Batcher, QueueFullError
from bistil.serving.server import make_server, open_socket

CLASSES, TREES, ANSWERS = "sequence-classification", "dependency-parsing", "question-answering"
SECRET = "a-token-of-this-test"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("serving")


@pytest.fixture(scope="module")
def models(place):
    """Loaded models by kind of task."""
    return {kind: bistil.load(model_in(place, "bert", kind), threads=1) for kind in LABELS}


@contextmanager
def served(model, **options):
    """A client of the application, and the application."""
    app = make_app(model, **options)
    try:
        with TestClient(app) as client:
            client.app = app
            yield client
    finally:
        app.batcher.close(10)


@pytest.fixture
def tagger(models):
    with served(models[TAGS], limits=Limits(body=20_000, inputs=30, characters=400)) as client:
        yield client


def ask(client, *inputs, path="/predict", **more):
    return client.post(path, json={"inputs": list(inputs), **more})


# --- the answers


@pytest.mark.parametrize("kind", LABELS)
def test_answers_are_those_of_load(models, kind):
    model = models[kind]
    given = [("Nani?", text) if kind == ANSWERS else text for text in TEXTS[:5]]
    sent = [{"question": one[0], "context": one[1]} if kind == ANSWERS else one for one in given]
    if kind in (TAGS, TREES):
        given, sent = [*given, ["New York", "ni", "mji"], ""], [*sent, ["New York", "ni", "mji"], ""]
    elif kind != ANSWERS:
        given, sent = [*given, ("a river", "rain")], [*sent, {"text": "a river", "pair": "rain"}]
    wanted = {"threshold": 0.4} if "threshold" in model.takes else {}
    with served(model) as client:
        got = ask(client, *sent, **wanted)
        assert got.status_code == 200 and got.headers["content-type"] == "application/json"
        body = got.json()
        assert body["predictions"] == json.loads(json.dumps(model(given, **wanted)))
        assert body["model"] == "model" and body["together"] == len(sent) and body["seconds"] > 0
        assert client.get("/health").json()["task"] == kind


@pytest.mark.parametrize("engine", ["onnxruntime", "ctranslate2"])
def test_exported_models_are_served_as_they_are_loaded(place, engine):
    for needed in ("onnx", "onnxruntime") if engine == "onnxruntime" else ("ctranslate2",):
        pytest.importorskip(needed)
    model = bistil.load(exported(place / engine, engine=engine), threads=1)
    with served(model) as client:
        assert ask(client, *TEXTS).json()["predictions"] == model(TEXTS)


def test_an_encoder_gives_vectors_and_a_teacher_is_asked_at_its_own_path(place):
    tiny.save(tiny.model(layers=2), place / "encoder")
    from bistil.models.sentences import SentenceForm

    model, other = (bistil.load(place / "encoder", sentences=SentenceForm(way)) for way in ("mean", "first"))
    with served(model, teacher=other, names={"model": "small", "teacher": "large"}) as client:
        small, large = ask(client, *TEXTS).json(), ask(client, *TEXTS, path="/teacher/predict").json()
        assert (small["model"], large["model"]) == ("small", "large")
        assert small["predictions"] == model(TEXTS) and large["predictions"] == other(TEXTS)
        assert small["predictions"] != large["predictions"]
        assert ask(client, {"text": "a", "pair": "b"}).status_code == 422
        assert client.get("/health").json()["teacher"] == "large"
    with served(model) as client:
        assert ask(client, "a", path="/teacher/predict").status_code == 404


# --- together


class Held:
    """A model that waits until it may go on, and keeps how many inputs it was asked about at once."""

    def __init__(self, model):
        self.model, self.go, self.begun, self.seen = model, threading.Event(), threading.Event(), []

    def __getattr__(self, name):
        return getattr(self.model, name)

    def said(self, inputs, wanted, **how):
        self.begun.set()
        assert self.go.wait(20)
        self.seen.append([one.text for one in inputs])
        if any("gift" in one.text for one in inputs):
            raise RuntimeError("poisoned")
        return self.model.said(inputs, wanted, **how)


def submitted(batcher, model, *texts, **wanted):
    return batcher.submit(model, [model.asked(text) for text in texts], Wanted(**wanted))


def test_what_waits_is_answered_together_up_to_a_batch_and_each_gets_its_own(models):
    tagger, labeller = Held(models[TAGS]), models[CLASSES]
    observed = []
    batcher = Batcher(batch=4, waiting=100, observe=lambda _, inputs, __: observed.append(inputs))
    first = submitted(batcher, tagger, TEXTS[0])
    assert tagger.begun.wait(20)
    rest = [submitted(batcher, tagger, text, threshold=i / 10) for i, text in enumerate(TEXTS[1:4])]
    other = submitted(batcher, labeller, TEXTS[0])
    split = submitted(batcher, tagger, TEXTS[4], sentences="split")
    pair = submitted(batcher, tagger, TEXTS[5], TEXTS[6])
    large = submitted(batcher, tagger, *TEXTS[:6])
    gone = submitted(batcher, tagger, TEXTS[7])
    assert batcher.waiting == 8 and gone.cancel()
    tagger.go.set()
    assert first.result(20).records == tagger.model(TEXTS[:1])
    for i, future in enumerate(rest):
        assert future.result(20).records == tagger.model([TEXTS[i + 1]], threshold=i / 10)
        assert future.result().together == 3
    assert other.result(20).records == labeller(TEXTS[:1])
    assert split.result(20).records == tagger.model([TEXTS[4]], sentences="split")
    assert pair.result(20).records == tagger.model(TEXTS[5:7]) and large.result(20).records == tagger.model(TEXTS[:6])
    batcher.close(20)
    # Another model or other sentences are another batch; what is larger than a batch is one; who left is not computed.
    assert tagger.seen == [TEXTS[:1], TEXTS[1:4], [TEXTS[4]], TEXTS[5:7], TEXTS[:6]] and sorted(observed) == [
        1,
        1,
        1,
        2,
        3,
        6,
    ]


def test_a_request_that_fails_takes_no_other_with_it(models):
    held = Held(models[TAGS])
    batcher = Batcher(batch=32, waiting=100)
    futures = [submitted(batcher, held, text) for text in ("first", "a river", "a gift", "rain")]
    held.go.set()
    assert [future.exception(20) is None for future in futures] == [True, True, False, True]
    assert futures[3].result().records == held.model(["rain"])
    batcher.close(20)


def test_a_full_queue_is_503_with_retry_after_and_nothing_else_is(models):
    held = Held(models[TAGS])
    with served(held, limits=Limits(waiting=2)) as client, ThreadPoolExecutor(3) as clients:
        asked = [clients.submit(ask, client, TEXTS[0])]
        assert held.begun.wait(20)
        for i in (1, 2):
            asked.append(clients.submit(ask, client, TEXTS[i]))
            while client.app.batcher.waiting < i:
                time.sleep(0.005)
        got = ask(client, TEXTS[3])
        assert got.status_code == 503 and 1 <= int(got.headers["retry-after"]) <= 60
        assert got.json()["detail"].startswith("2 requests wait already")
        assert client.get("/health").status_code == 200
        held.go.set()
        assert [one.result(20).status_code for one in asked] == [200] * 3
        assert ask(client, TEXTS[3]).status_code == 200


def test_a_queue_keeps_no_place_for_those_who_left(models):
    held = Held(models[TAGS])
    batcher = Batcher(batch=1, waiting=1)
    submitted(batcher, held, "a")
    assert held.begun.wait(20)
    left = submitted(batcher, held, "b")
    with pytest.raises(QueueFullError):
        submitted(batcher, held, "c")
    assert left.cancel()
    kept = submitted(batcher, held, "d")
    held.go.set()
    assert kept.result(20).together == 1
    batcher.close(20)


# --- limits, bad requests


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"", 422, "Field required"),
        (b"{", 422, "JSON decode error"),
        (b'{"inputs": ["\xff"]}', 400, "not UTF-8"),
        ('{"inputs": ["a"]}'.encode("utf-16"), 400, "not UTF-8"),
        (b'{"inputs": ["a\\u0000"]}', 400, "NUL"),
        (b'{"inputs": ["a\\ud800"]}', 400, "surrogate"),
        (b'{"inputs": ' + b"[" * 5_000 + b"]" * 5_000 + b"}", 400, "deep"),
        (b'{"inputs": ["a"], "threshold": NaN}', 400, "NaN"),
        (b'{"inputs": ["a"], "threshold": ' + b"9" * 5_000 + b"}", 400, "digits"),
        (b'{"inputs": ["a"], "threshold": 2}', 422, "less than or equal to 1"),
        (b'{"inputs": ["a"], "threshold": "0.5"}', 422, "valid number"),
        (b'{"inputs": ["a"], "n_best": 2}', 422, "not permitted"),
        (b'{"inputs": ["a"], "sentences": "none"}', 422, "'line' or 'split'"),
        (b'{"inputs": []}', 422, "at least 1 item"),
        (b'{"inputs": [3]}', 422, "valid string"),
        (b'{"inputs": [["a", ""]]}', 422, "at least 1 character"),
        (b'{"inputs": "a"}', 422, "valid list"),
        (b'["a"]', 422, "valid dictionary|object"),
        (json.dumps({"inputs": ["a"] * 31}).encode(), 422, "at most 30 items"),
        (json.dumps({"inputs": ["secret" * 100]}).encode(), 422, "at most 400 characters"),
        (json.dumps({"inputs": ["a", ["b" * 40] * 10]}).encode(), 422, "input 2 has 409 characters, and 400 are read"),
        (b" " * 20_001, 413, "more than 20,000 bytes"),
    ],
    ids=str,
)
def test_what_is_no_request_is_4xx_and_not_repeated(tagger, body, status, said):
    got = tagger.post("/predict", content=body, headers={"content-type": "application/json"})
    assert got.status_code == status and re.search(said, got.text), got.text
    assert "secret" not in got.text and len(got.text) < 5_000
    assert ask(tagger, TEXTS[0]).status_code == 200


def test_a_body_in_chunks_has_the_same_limit_and_forms_are_refused(tagger):
    got = tagger.post(
        "/predict", content=(b" " * 1000 for _ in range(30)), headers={"content-type": "application/json"}
    )
    assert got.status_code == 413
    # What a page of another site can send without asking is none of these.
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        got = tagger.post("/predict", content=b'{"inputs": ["a"]}', headers={"content-type": kind})
        assert got.status_code == 422
    assert tagger.get("/predict").status_code == 405 and tagger.get("/docs").status_code == 404


def called(app, messages, *, path="/predict", wait=True):
    """Call an application by hand: what it sends, when what is received are these messages, and then nothing."""
    sent, left = [], list(messages)

    async def receive():
        if left:
            return left.pop(0)
        await asyncio.sleep(60 if wait else 0)
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"", "headers": [
            (b"content-type", b"application/json")], "http_version": "1.1", "scheme": "http", "root_path": "",
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))
    return sent


def test_a_body_that_does_not_come_is_408_and_a_client_that_leaves_is_not_computed(models):
    held = Held(models[TAGS])
    app = make_app(held, limits=Limits(seconds=0.05))
    sent = called(app, [{"type": "http.request", "body": b'{"inp', "more_body": True}])
    assert sent[0]["status"] == 408 and (b"connection", b"close") in sent[0]["headers"]
    assert called(app, [{"type": "http.request", "body": b"{", "more_body": True}], wait=False) == []
    blocked = submitted(app.batcher, held, "first")
    assert held.begun.wait(20)
    called(app, [{"type": "http.request", "body": b'{"inputs": ["second"]}'}], wait=False)
    held.go.set()
    assert blocked.result(20).together == 1
    app.batcher.close(20)
    assert held.seen == [["first"]]
    counted = app.metrics.text().decode()
    assert 'bistil_requests_total{path="/predict",status="408"} 1.0' in counted
    assert 'bistil_requests_total{path="/predict",status="499"} 2.0' in counted


def test_a_model_that_fails_is_one_line_in_the_log_and_500(models, capsys):
    held = Held(models[TAGS])
    held.go.set()
    with served(held) as client:
        got = ask(client, "gift")
        assert got.status_code == 500 and got.json() == {"detail": "the server failed; its log says why"}
        assert ask(client, "rain").status_code == 200
    assert capsys.readouterr().err.count("\n") == 1


# --- token, metrics, page


def test_who_has_no_token_gets_no_prediction_and_no_metrics(models):
    with served(models[TAGS], token=SECRET) as client:
        for given in (None, "", SECRET, f"Basic {SECRET}", "Bearer ", f"Bearer {SECRET}x", f"Bearer {SECRET[:-1]}"):
            headers = {} if given is None else {"authorization": given}
            for got in (
                client.post("/predict", json={"inputs": ["a"]}, headers=headers),
                client.get("/metrics", headers=headers),
            ):
                assert got.status_code == 401 and got.headers["www-authenticate"] == "Bearer"
        own = {"authorization": f"Bearer {SECRET}"}
        assert client.post("/predict", json={"inputs": ["a"]}, headers=own).status_code == 200
        assert client.get("/metrics", headers=own).status_code == 200
        assert client.get("/").status_code == client.get("/health").status_code == 200
        assert SECRET not in client.get("/health").text + client.get("/openapi.json").text


def test_a_token_comes_from_a_file_of_one_s_own_or_the_environment(tmp_path, monkeypatch):
    file = tmp_path / "token"
    file.write_text(f"{SECRET}\n")
    file.chmod(0o600)
    monkeypatch.setenv(TOKEN, f"{SECRET}-2")
    assert read_token(file) == SECRET and read_token(None) == f"{SECRET}-2"
    file.chmod(0o644)
    with pytest.raises(InputError, match="chmod 600"):
        read_token(file)
    file.chmod(0o600)
    for wrong in ("", "short", "two words of a token", "schlüssel-schlüssel"):
        file.write_text(wrong)
        with pytest.raises(InputError, match="holds no token"):
            read_token(file)
        monkeypatch.setenv(TOKEN, wrong)
        with pytest.raises(InputError, match=TOKEN):
            read_token(None)
    monkeypatch.delenv(TOKEN)
    assert read_token(None) is None


def test_metrics_count_and_do_not_grow_by_what_clients_send(tagger):
    for i in range(3):
        ask(tagger, TEXTS[0], TEXTS[1])
        tagger.get(f"/nowhere/{i}")
    got = tagger.get("/metrics")
    assert got.headers["content-type"].startswith("text/plain; version=")
    for line in (
        'bistil_requests_total{path="/predict",status="200"} 3.0',
        'bistil_requests_total{path="other",status="404"} 3.0',
        'bistil_inputs_total{model="model"} 6.0',
        'bistil_batch_inputs_count{model="model"} 3.0',
        "bistil_requests_waiting 0.0",
        "process_resident_memory_bytes",
    ):
        assert line in got.text
    assert "nowhere" not in got.text


def test_the_page_needs_nothing_from_elsewhere_and_puts_no_markup_together(tagger):
    shown = "".join((files("bistil.serving") / name).read_text() for name, _ in PAGE.values())
    assert not re.findall(r"(?:src|href)=\"(?!page\.)|https?://(?!www\.w3\.org/2000/svg)", shown)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval|\son\w+=|<style|style=", shown)
    for path, (_, kind) in PAGE.items():
        got = tagger.get(path)
        assert got.status_code == 200 and got.headers["content-type"].split(";")[0] == kind
        policy = got.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert got.headers["x-content-type-options"] == "nosniff"
    assert ask(tagger, "<script>").headers["content-security-policy"]


# --- any request


@pytest.mark.parametrize("kind", [TAGS, ANSWERS])
def test_no_request_that_schemathesis_thinks_of_is_500(models, kind):
    from requests_of_any_kind import ask_anything

    done = {}
    with served(models[kind], teacher=models[kind], limits=Limits(body=20_000, inputs=4)) as client:
        for path, asked, wrong in ask_anything(client.app, 20):
            assert wrong is None, wrong
            done[path] = asked
    assert sorted(done) == ["/health", "/metrics", "/predict", "/teacher/predict"]
    assert min(done["/predict"], done["/teacher/predict"]) >= 20


# --- sockets


@contextmanager
def listening(app, limits):
    """A server at a socket, in a thread; its address, and itself."""
    opened = open_socket("127.0.0.1", 0)
    server = make_server(app, limits)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([opened])))
    thread.start()
    try:
        while not server.started:
            time.sleep(0.005)
        yield opened.getsockname(), server
    finally:
        server.should_exit = True
        thread.join(20)
        app.batcher.close(20)
        assert not thread.is_alive()


def request_of(*texts, **more):
    body = json.dumps({"inputs": texts, **more}).encode()
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def heard(one):
    """All that comes until the connection is closed."""
    got = b""
    with suppress(ConnectionError):
        while part := one.recv(1 << 16):
            got += part
    return got


def test_slow_clients_are_cut_and_those_who_break_off_hurt_nobody(models):
    limits = Limits(seconds=0.5, idle=0.3)
    with listening(make_app(models[TAGS], limits=limits), limits) as (address, _):
        slow = {
            "nothing": b"",
            "half a line": b"POST /pre",
            "half of the headers": b"POST /predict HTTP/1.1\r\nHost: x\r\n",
            "half a body": request_of(TEXTS[0])[:-5],
            "idle": request_of(TEXTS[0]),
        }
        waiting = {}
        for name, sent in slow.items():
            waiting[name] = socket.create_connection(address, timeout=20)
            waiting[name].sendall(sent)
        # Meanwhile: garbage, requests that are broken off anywhere, and sound ones.
        with socket.create_connection(address, timeout=20) as one:
            one.sendall(b"\x16\x03\x01 no HTTP\r\n\r\n")
            assert heard(one).startswith(b"HTTP/1.1 400 ")
        for cut in range(0, len(request_of(TEXTS[0])) + 1, 40):
            one = socket.create_connection(address, timeout=20)
            one.sendall(request_of(TEXTS[0])[:cut])
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            one.close()
        with socket.create_connection(address, timeout=20) as one:
            # One behind the other, before the first is answered.
            one.sendall(request_of(TEXTS[0]) + request_of(TEXTS[1]))
            assert heard(one).count(b"HTTP/1.1 200 OK") == 2
        # A drop of the headers now and then does not keep a connection.
        since = time.monotonic()
        with suppress(ConnectionError):
            while time.monotonic() < since + 20:
                waiting["half of the headers"].sendall(b"X")
                time.sleep(0.05)
        assert time.monotonic() < since + 20
        got = {name: heard(one) for name, one in waiting.items()}
        assert got["nothing"] == got["half a line"] == got["half of the headers"] == b""
        assert got["half a body"].startswith(b"HTTP/1.1 408 ") and got["idle"].startswith(b"HTTP/1.1 200 ")
        for one in waiting.values():
            one.close()


def test_a_client_that_takes_no_answer_is_cut(models):
    class Wordy(Held):
        def record(self, *_):
            return {"text": "a" * 20_000_000}

    wordy, limits = Wordy(models[TAGS]), Limits(seconds=0.3)
    wordy.go.set()
    with listening(make_app(wordy, limits=limits), limits) as (address, server), socket.socket() as one:
        one.settimeout(20)
        one.connect(address)
        one.sendall(request_of("a"))
        part, until = one.recv(1000), time.monotonic() + 20
        while server.server_state.connections:
            assert time.monotonic() < until
            time.sleep(0.01)
        size = int(re.search(rb"content-length: (\d+)", part)[1])
        assert part.startswith(b"HTTP/1.1 200 ") and len(part + heard(one)) < size


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_under_load_answers_what_is_in_flight_and_takes_nothing_new(place, tmp_path, number):
    """The whole command in a process of its own, whose model waits until it is let go."""
    model, log, go = model_in(place, "bert", TAGS), tmp_path / "log", tmp_path / "go"

    def work():
        sys.stderr = os.fdopen(2, "w", closefd=False)
        answer = Batcher._answer

        def late(self, jobs):
            while not go.exists():
                time.sleep(0.02)
            answer(self, jobs)

        Batcher._answer = late
        torch.set_num_threads(1)
        sys.argv = ["bistil", "serve", str(model), "--port", "0", "--batch-size", "2", "--threads", "1"]
        try:
            main()
        except SystemExit as stopped:
            os._exit(stopped.code or 0)

    def until(found):
        deadline = time.monotonic() + 20
        while not (there := found()):
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        return there

    def refuses():
        with socket.socket() as one:
            one.settimeout(5)
            return one.connect_ex(address) != 0

    child, flying = fork(log, work), []
    try:
        port = until(
            lambda: re.search(r"serving at http://127\.0\.0\.1:(\d+)", (log.exists() and log.read_text()) or "")
        )[1]
        address = ("127.0.0.1", int(port))
        for text in TEXTS[:8]:
            flying.append(socket.create_connection(address, timeout=30))
            flying[-1].sendall(request_of(text))
        # They, and the one that asks.
        url = f"http://127.0.0.1:{port}/metrics"
        until(lambda: b"bistil_requests_in_flight 9.0" in urllib.request.urlopen(url, timeout=5).read())
        os.kill(child, number)
        until(refuses)
        go.touch()
        answers = [heard(one) for one in flying]
        assert all(one.startswith(b"HTTP/1.1 200 ") for one in answers)
        for text, got in zip(TEXTS, answers, strict=False):
            assert json.loads(got.partition(b"\r\n\r\n")[2])["predictions"][0]["text"] == text
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        child = None
        said = log.read_text()
        assert code == 0, said
        assert "requests in flight (8)" in said and "interrupted" not in said and "Traceback" not in said
    finally:
        if child is not None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        for one in flying:
            one.close()


# --- the command


def refused(call, *parts):
    code, out, said = call
    lines = said.splitlines()
    assert code == 2 and not out and len(lines) == 1, said
    assert all(part in lines[0] for part in parts), said


def test_what_cannot_be_served_is_one_line(command_line, place, tmp_path, monkeypatch):
    model = model_in(place, "bert", TAGS)
    free = ["--port", "0"]
    refused(command_line("serve", tmp_path / "none", *free), "no such folder")
    refused(command_line("serve", tmp_path, *free), "holds no model")
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "sft_config.json").write_text("{}")
    refused(command_line("serve", tmp_path / "sft", *free), "sparse fine-tuning", "bistil sft merge")
    refused(command_line("serve", place / "bert", *free), "encoder without a head", "bistil finetune")
    refused(command_line("serve", model, "--teacher", model_in(place, "bert", CLASSES), *free), "cannot be compared")
    refused(command_line("serve", model, "--token-file", tmp_path / "none", *free), "cannot read")
    refused(command_line("serve", model, "--host", "no.such.host.invalid", *free), "no address")
    refused(command_line("serve", model, "--max-length", "100000", *free), "100000")
    refused(command_line("serve", model, "--timeout", "nan", *free), "--timeout")
    refused(command_line("serve", model, "--threads", "0", *free), "--threads")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused(command_line("serve", model, "--port", port), "in use", "--port")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    refused(command_line("serve", model, *free), "pip install 'bistil[serve]'")


def test_limits_that_limit_nothing_are_refused():
    for wrong in ({"seconds": float("nan")}, {"stop": float("inf")}, {"waiting": 0}):
        with pytest.raises(InputError, match=f"{next(iter(wrong))} is"):
            Limits(**wrong)


def test_the_command_line_starts_without_the_extra():
    script = "import sys; sys.modules['fastapi'] = sys.modules['uvicorn'] = None; import bistil.cli"
    subprocess.run([sys.executable, "-c", script], check=True)
