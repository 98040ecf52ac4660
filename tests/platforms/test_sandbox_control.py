"""The sandbox's control API, its faults on the wire, and its command line."""

import contextlib
import http.server
import os
import socket
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from sandbox_client import RawClient

from sandbox_process import Sandbox, start_sandbox

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "include"))
from sandbox.faults import SPECIAL, TRANSPORT  # noqa: E402
from sandbox.webhook import signature  # noqa: E402


@pytest.fixture
def raw(sandbox_process: Any) -> RawClient:
    client = RawClient(sandbox_process.access)
    client.control("POST", "/reset", {}).raise_for_status()
    return client


# ------------------------------------------------------------------------------------------------------------ control


def test_control_needs_its_token(raw: RawClient) -> None:
    url = raw.access["control"]["url"] + "/clock"
    assert requests.get(url, timeout=10).status_code == 401
    assert requests.get(url, headers={"Authorization": "Bearer x"}, timeout=10).status_code == 401
    assert raw.control("GET", "/clock").json()["now"].startswith("2026-03-15T00:00:")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "says"),
    [
        ("POST", "/clock", {"now": "2026-03-14T00:00:00+08:00"}, 409, "only moves forward"),
        ("POST", "/clock", {"now": "tomorrow"}, 409, "'tomorrow' is not an instant"),
        ("POST", "/clock", {"now": "2026-03-16T00:00:00"}, 409, "has no offset"),
        ("POST", "/clock", {}, 409, "the body must be"),
        ("POST", "/faults", {}, 400, "the body must be"),
        ("POST", "/faults", {"faults": [{"platform": "ebay", "kind": "http_500"}]}, 400, "no platform 'ebay'"),
        ("POST", "/faults", {"faults": [{"platform": "taobao", "kind": "rain"}]}, 400, "has no fault 'rain'"),
        ("POST", "/faults", {"faults": [{"platform": "smtp", "kind": "http_500"}]}, 400, "has no fault"),
        ("POST", "/faults", {"faults": [{"platform": "taobao", "kind": "slow", "often": 1}]}, 400, "a fault has"),
        ("POST", "/settings", {"weather": 1}, 400, "no setting 'weather'"),
        ("POST", "/settings", {"click": "often"}, 400, "must be a float"),
        ("POST", "/settings", {"top_rate": 1.5}, 400, "must be a int"),
        ("GET", "/nothing", None, 404, "known are"),
    ],
)
def test_control_says_what_is_wrong(raw: RawClient, method: str, path: str, body: Any, status: int, says: str) -> None:
    answer = raw.control(method, path, body)
    assert answer.status_code == status
    assert says in answer.json()["error"]


def test_the_clock_runs_on_and_may_step_back_a_little(raw: RawClient) -> None:
    raw.control("POST", "/clock", {"now": "2026-03-15T02:30:00+08:00"}).raise_for_status()
    time.sleep(1.1)
    assert raw.now().isoformat() > "2026-03-15T02:30:00+08:00"
    assert raw.control("POST", "/clock", {"now": "2026-03-15T02:25:00+08:00"}).status_code == 200


def test_paths_nobody_serves(raw: RawClient) -> None:
    assert raw.http.get(raw.access["base_url"] + "/", timeout=10).status_code == 404
    assert raw.http.get(raw.access["base_url"] + "/cgi-bin/nothing", timeout=10).status_code == 404


def test_requests_are_counted_per_method(raw: RawClient) -> None:
    for _ in range(3):
        raw.top("taobao.trades.sold.get", fields="tid", page_size=1)
    raw.wechat("/cgi-bin/user/get")
    raw.all_events()
    requests_made = raw.control("GET", "/counters").json()["requests"]
    assert requests_made["taobao"] == {"taobao.trades.sold.get": 3}
    assert requests_made["wechat_official"] == {"cgi-bin/stable_token": 1, "cgi-bin/user/get": 1}
    assert requests_made["own_pages"] == {"events": 1}


# ------------------------------------------------------------------------------------------------------------ faults


def ask(raw: RawClient) -> requests.Response:
    params = raw.top_params("taobao.trades.sold.get", fields="tid,status", page_size=50)
    params["sign"] = raw.top_sign(params)
    return raw.top_post(params)


def spoil(raw: RawClient, kind: str, **more: Any) -> None:
    fault = {"platform": "taobao", "method": "taobao.trades.sold.get", "kind": kind, **more}
    raw.control("POST", "/faults", {"faults": [fault]}).raise_for_status()


@pytest.mark.parametrize(
    ("kind", "status"), [("http_500", 500), ("http_502", 502), ("http_503", 503), ("http_429", 429)]
)
def test_http_faults(raw: RawClient, kind: str, status: int) -> None:
    spoil(raw, kind, times=2, after=1, seconds=7)
    answers = [ask(raw) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, status, status, 200]
    assert answers[1].headers.get("Retry-After") == ("7" if status == 429 else None)


@pytest.mark.parametrize("kind", ["truncated_json", "garbage", "empty"])
def test_answers_that_are_no_json(raw: RawClient, kind: str) -> None:
    spoil(raw, kind)
    answer = ask(raw)
    assert answer.status_code == 200
    with pytest.raises(requests.JSONDecodeError):
        answer.json()
    assert "trades_sold_get_response" in ask(raw).json()


@pytest.mark.parametrize("kind", ["cut", "cut_before", "timeout_before", "timeout_after"])
def test_connections_that_end(raw: RawClient, kind: str) -> None:
    spoil(raw, kind, seconds=1)
    began = time.monotonic()
    with pytest.raises(requests.RequestException):
        ask(raw)
    if kind.startswith("timeout"):
        assert time.monotonic() - began > 1
    assert "trades_sold_get_response" in ask(raw).json()


def test_a_slow_answer_is_still_right_and_holds_nobody_up(raw: RawClient) -> None:
    spoil(raw, "slow", seconds=2)
    answers: list[Any] = []
    slow = threading.Thread(target=lambda: answers.append(ask(RawClient(raw.access)).json()))
    slow.start()
    time.sleep(0.4)
    assert "trades_sold_get_response" in ask(raw).json()
    assert answers == []
    slow.join()
    assert "trades_sold_get_response" in answers[0]


@pytest.mark.parametrize(
    ("kind", "done"),
    [("timeout_before", 0), ("cut_before", 0), ("timeout_after", 1), ("cut", 1), ("http_500_after", 1)],
)
def test_before_and_after_differ_in_what_was_done(raw: RawClient, kind: str, done: int) -> None:
    openid = raw.wechat("/cgi-bin/user/get")["data"]["openid"][0]
    fault = {"platform": "wechat_pay", "method": "send_coupon", "kind": kind, "seconds": 0.1}
    raw.control("POST", "/faults", {"faults": [fault]}).raise_for_status()
    with contextlib.suppress(requests.RequestException):
        assert raw.send_coupon(openid, "once").status_code == 500
    assert raw.control("GET", "/counters").json()["coupons"]["granted"] == done
    assert raw.send_coupon(openid, "once").status_code == 200
    assert raw.control("GET", "/counters").json()["coupons"]["granted"] == 1


def test_every_fault_that_is_announced_can_be_set(raw: RawClient) -> None:
    wanted = [("taobao", kind) for kind in TRANSPORT]
    wanted += [(platform, kind) for kind, platforms in SPECIAL.items() for platform in platforms]
    faults = [{"platform": platform, "kind": kind, "times": 0} for platform, kind in wanted]
    assert raw.control("POST", "/faults", {"faults": faults}).json() == {"faults": len(wanted)}
    listed = raw.control("GET", "/faults").json()
    assert [(entry["platform"], entry["kind"]) for entry in listed["faults"]] == wanted
    assert raw.control("POST", "/faults", {"faults": []}).json() == {"faults": 0}


@pytest.mark.parametrize("kind", ["duplicate_page", "missing_id", "bad_value"])
def test_spoilt_archive_pages(raw: RawClient, kind: str) -> None:
    since = raw.now() - timedelta(days=30)
    good = raw.events(since, raw.now(), size=5).json()["events"]
    raw.control("POST", "/faults", {"faults": [{"platform": "own_pages", "kind": kind}]}).raise_for_status()
    bad = raw.events(since, raw.now(), size=5).json()["events"]
    assert bad != good
    if kind == "duplicate_page":
        assert bad == good + good
    else:
        lost = {"missing_id": "event_id", "bad_value": "received_at"}[kind]
        assert bad[0].get(lost) in (None, "not a time")
        assert bad[1:] == good[1:]
    assert raw.events(since, raw.now(), size=5).json()["events"] == good


# ------------------------------------------------------------------------------------------------------------ command line


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sandbox", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT / "include")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_names_every_option() -> None:
    text = run("--help").stdout
    for option in (
        "--port",
        "--smtp-port",
        "--access-file",
        "--customers",
        "--seed",
        "--anchor",
        "--now",
        "--top-rate",
    ):
        assert option in text


def test_it_needs_nothing_of_the_product() -> None:
    """Loading the whole server imports no module of nightmarket or Airflow."""
    code = (
        "import sys, sandbox.__main__; print([n for n in sys.modules if n.split('.')[0] in ('nightmarket', 'airflow')])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "include")}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


def test_a_port_in_use_is_one_sentence(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ended = run("--port", port, "--smtp-port", "0", "--access-file", str(tmp_path / "access.json"))
    assert ended.returncode == 2
    assert ended.stderr.strip() == f"sandbox: HTTP port {port} on 127.0.0.1 cannot be used: Address already in use"
    assert not (tmp_path / "access.json").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--customers", "0"), "--customers must be at least 1"),
        (("--anchor", "someday"), "--anchor"),
        (("--now", "1999-01-01T00:00:00+08:00"), "--now: the clock stands at"),
        (("--data-file", "/nowhere.csv.gz"), "the data file cannot be read"),
    ],
)
def test_bad_arguments_are_one_sentence(tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    access = str(tmp_path / "access.json")
    ended = run("--port", "0", "--smtp-port", "0", "--customers", "5", "--access-file", access, *arguments)
    assert ended.returncode == 2
    assert says in ended.stderr.strip().splitlines()[-1]
    assert "Traceback" not in ended.stderr


class Listener(http.server.BaseHTTPRequestHandler):
    received: list[tuple[str, bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.received.append((self.path, body))
        fails = len(self.received) == 1  # the first try is answered badly: it comes again
        self.send_response(500 if fails else 200)
        self.end_headers()
        self.wfile.write(b"" if fails else b"success")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def listener() -> Iterator[http.server.ThreadingHTTPServer]:
    Listener.received = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Listener)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.mark.slow
def test_another_process_with_the_same_seed_is_the_same_world_and_pushes_to_a_webhook(
    raw: RawClient, tmp_path: Path, listener: http.server.ThreadingHTTPServer
) -> None:
    url = f"http://127.0.0.1:{listener.server_address[1]}/wechat?account=1"
    process, twin = start_sandbox(
        tmp_path, "--customers", "150", "--seed", "7", "--anchor", "2026-03-14", "--webhook", url
    )
    try:
        other = RawClient(twin.access)
        assert (tmp_path / "access.json").stat().st_mode & 0o077 == 0
        assert _same(raw, other)
        target = {"now": "2026-03-17T00:00:00+08:00"}
        for client in (raw, other):
            client.control("POST", "/clock", target).raise_for_status()
        assert _same(raw, other)
        since = raw.now() - timedelta(days=2)
        pushes = [event["data"]["xml"] for event in other.all_events(since) if event["kind"] == "wechat.event"]
        recent = [xml for xml in pushes if int(_created(xml)) >= 1773504000]  # 2026-03-15 in China
        assert len(recent) >= 2
        deadline = time.monotonic() + 90
        while len(Listener.received) < len(recent) + 1 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert [body.decode() for _, body in Listener.received[1:]] == recent
        assert Listener.received[0][1] == Listener.received[1][1]
        query = {name: values[0] for name, values in parse_qs(urlsplit(Listener.received[1][0]).query).items()}
        token = twin.access["wechat_official"]["push_token"]
        assert query["signature"] == signature(token, query["timestamp"], query["nonce"])
        assert query["account"] == "1"
    finally:
        process.terminate()
        assert process.wait(10) == 0


def _created(xml: str) -> str:
    return ElementTree.fromstring(xml).findtext("CreateTime") or ""


def _same(one: RawClient, other: RawClient) -> bool:
    mine, theirs = one.truth(), other.truth()
    for truth in (mine, theirs):
        del truth["now"]
    return mine == theirs


def test_people_lists_everybody_with_the_values_a_leak_scan_needs(sandbox: Sandbox) -> None:
    people = sandbox.control("GET", "/people")["people"]
    assert len(people) >= 150
    assert all(person["phone"].startswith("100") and len(person["phone"]) == 11 for person in people)
    assert any(person["email"] and person["email"].endswith(".test") for person in people)
