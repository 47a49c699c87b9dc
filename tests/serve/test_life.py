"""A server's life: clients that leave, a full queue, a stuck or failing model, the drain, the figures."""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra `serve`")
import httpx2 as httpx

from modelworks.infer.language_model import LanguageModel

from ..infer.tiny import language_model
from .running import Assistant, serving, until

LONG: dict[str, Any] = {"model": "slow", "prompt": "x", "max_tokens": 2000, "seed": 1}


class Slow(LanguageModel):
    """The tiny model with a pause at every step, no end of text, and a longer context."""

    def __init__(self, pause: float = 0.01) -> None:
        base = language_model(max_len=4096)
        super().__init__(base.model, base.tokenizer, base.family, base.config)
        self.engine.stop_tokens = frozenset()
        self.gate = threading.Event()
        self.gate.set()
        self.fails = False
        make = self.engine.scheduler

        def scheduler(max_rows: int | None = None) -> Any:
            made = make(max_rows)
            step = made.step

            def slowly() -> Any:
                time.sleep(pause)
                self.gate.wait()
                if self.fails:
                    raise RuntimeError("secret inside")
                return step()

            made.step = slowly
            return made

        self.engine.scheduler = scheduler  # type: ignore[method-assign]


def figure(url: str, name: str) -> float:
    for row in httpx.get(f"{url}/metrics").text.splitlines():
        if row.startswith(name + " "):
            return float(row.split()[-1])
    raise AssertionError(f"no figure {name}")


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_stops_its_generation_and_nobody_elses(stream: bool) -> None:
    slow = Slow()
    with serving({"slow": slow}) as (url, app, _):
        worker = app.state.worker
        with concurrent.futures.ThreadPoolExecutor() as pool:
            neighbour = pool.submit(httpx.post, f"{url}/v1/completions", json=LONG | {"max_tokens": 60}, timeout=60)
            body = json.dumps(LONG | {"stream": stream}).encode()
            with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))) as rude:
                rude.sendall(
                    b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                    + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
                )  # fmt: skip
                assert until(lambda: worker.pending == 2)
                if stream:
                    assert b"200 OK" in rude.recv(200)
            assert until(lambda: worker.pending <= 1, 5), "the generation went on without its client"
            text = neighbour.result().json()["choices"][0]["text"]
        assert until(lambda: worker.pending == 0)
        assert figure(url, "modelworks_cancelled_total") == 1
    slow.engine.stop_tokens = frozenset()
    assert text == slow.generate("x", max_new_tokens=60, seed=1)


def test_a_full_queue_says_when_to_come_back() -> None:
    slow = Slow()
    slow.gate.clear()
    with serving({"slow": slow}, max_queue=4) as (url, app, _), concurrent.futures.ThreadPoolExecutor() as pool:
        asked = LONG | {"max_tokens": 3}
        taken = [pool.submit(httpx.post, f"{url}/v1/completions", json=asked, timeout=60) for _ in range(4)]
        assert until(lambda: app.state.worker.pending == 4)
        start = time.monotonic()
        refused = httpx.post(f"{url}/v1/completions", json=asked)
        assert time.monotonic() - start < 2
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert httpx.get(f"{url}/healthz").status_code == 200
        slow.gate.set()
        assert [one.result().status_code for one in taken] == [200] * 4
        assert httpx.post(f"{url}/v1/completions", json=asked, timeout=60).status_code == 200
        assert figure(url, "modelworks_queue_depth") == 0


def test_readiness_tells_when_the_worker_is_stuck_and_when_it_is_back() -> None:
    slow = Slow()
    with serving({"slow": slow}, stuck_seconds=0.3) as (url, _, _), concurrent.futures.ThreadPoolExecutor() as pool:
        assert httpx.get(f"{url}/readyz").status_code == 200
        slow.gate.clear()
        one = pool.submit(httpx.post, f"{url}/v1/completions", json=LONG | {"max_tokens": 3}, timeout=60)
        assert until(lambda: httpx.get(f"{url}/readyz").status_code == 503)
        assert httpx.get(f"{url}/readyz").json() == {"status": "stuck"}
        assert httpx.get(f"{url}/healthz").status_code == 200
        assert httpx.post(f"{url}/v1/completions", json=LONG).status_code == 503
        slow.gate.set()
        assert one.result().status_code == 200
        assert until(lambda: httpx.get(f"{url}/readyz").status_code == 200)


def test_a_failing_step_costs_its_own_requests_only_and_tells_no_inside() -> None:
    slow = Slow()
    with serving({"slow": slow, "tiny": language_model()}) as (url, _, _):
        slow.fails = True
        failed = httpx.post(f"{url}/v1/completions", json=LONG)
        assert failed.status_code == 500 and "secret" not in failed.text
        lines = httpx.post(f"{url}/v1/completions", json=LONG | {"stream": True}).text
        assert '"error"' in lines and "secret" not in lines and "[DONE]" not in lines
        slow.fails = False
        for model in ("slow", "tiny"):
            asked = {"model": model, "prompt": "x", "max_tokens": 3}
            assert httpx.post(f"{url}/v1/completions", json=asked, timeout=60).status_code == 200


def test_a_request_that_takes_too_long_is_ended() -> None:
    with serving({"slow": Slow()}, request_seconds=0.4) as (url, app, _):
        assert httpx.post(f"{url}/v1/completions", json=LONG, timeout=60).status_code == 504
        assert until(lambda: app.state.worker.pending == 0)


def test_the_drain_finishes_what_runs_refuses_the_new_and_says_so() -> None:
    with serving({"slow": Slow()}) as (url, app, server), concurrent.futures.ThreadPoolExecutor() as pool:
        running = pool.submit(
            httpx.post, f"{url}/v1/completions", json=LONG | {"max_tokens": 150, "stream": True}, timeout=60
        )
        assert until(lambda: app.state.worker.pending == 1)
        server.handle_exit(signal.SIGTERM, None)
        assert httpx.get(f"{url}/readyz").json() == {"status": "draining"}
        refused = httpx.post(f"{url}/v1/completions", json=LONG)
        assert refused.status_code == 503 and "retry-after" in refused.headers
        assert running.result().text.endswith("data: [DONE]\n\n")
        assert until(lambda: not app.state.worker.alive)


def test_figures_have_bounded_labels(capsys: Any) -> None:
    with serving() as (url, _, _):
        for i in range(5):
            httpx.get(f"{url}/nothing{i}")
        httpx.post(f"{url}/v1/completions", json={"model": "tiny", "prompt": "x", "max_tokens": 3})
        text = httpx.get(f"{url}/metrics").text
    assert "nothing" not in text
    assert 'modelworks_requests_total{route="other",status="404"} 5.0' in text
    assert 'modelworks_tokens_total{kind="written",model="tiny"}' in text
    assert 'modelworks_first_token_seconds_count{model="tiny"} 1.0' in text


def test_an_assistants_mistaken_question_is_the_clients_mistake() -> None:
    from modelworks.base.errors import UserError

    class Picky(Assistant):
        def answer(self, question: Any) -> Any:
            raise UserError("there is no question to answer; ask one.")

    asked = {"model": "picky", "messages": [{"role": "user", "content": " "}]}
    with serving({"picky": Picky()}) as (url, _, _):
        assert httpx.post(f"{url}/v1/chat/completions", json=asked).json()["error"]["message"].startswith("there is no")


def test_raw_paths_open_nothing() -> None:
    """What a client library would tidy up before sending."""
    with serving(api_keys=["k"]) as (url, _, _):
        for path in (
            "/v1/models/../../healthz",
            "/healthz/../v1/models",
            "http://127.0.0.1/v1/models",
            "/%2e/v1/models",
            "*",
        ):
            with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))) as raw:
                raw.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
                said = raw.makefile("rb").read()
            assert said.split(b" ", 2)[1] in (b"400", b"401", b"404"), (path, said[:80])


SERVER = """
import sys
sys.path.insert(0, sys.argv[1])
from tests.infer.tiny import language_model
from modelworks.serve.app import serve
serve({"tiny": language_model()}, host="127.0.0.1", port=0)
"""


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_the_process_ends_well_at_a_signal(sign: signal.Signals) -> None:
    root = Path(__file__).parents[2]
    env = os.environ | {"PYTHONPATH": str(root / "src")}
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(root)], env=env, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        assert first.startswith("serving tiny at http://127.0.0.1:"), first
        url = first.split()[3]

        def up() -> bool:
            try:
                return httpx.get(f"{url}/readyz").status_code == 200
            except httpx.HTTPError:
                return False

        assert until(up)
        process.send_signal(sign)
        assert process.wait(20) == 0
        assert "Traceback" not in process.stderr.read()


def test_a_taken_port_is_one_sentence() -> None:
    from modelworks.base.errors import UserError
    from modelworks.serve.server import listen
    from modelworks.serve.settings import ServeSettings

    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = ServeSettings(port=taken.getsockname()[1], api_keys=[])
        with pytest.raises(UserError, match="cannot listen"), listen(settings):
            pass
