"""Nobody gets past the gate: keys on every route, hosts, origins, ceilings, headers, odd bodies."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra `serve`")

from fastapi.testclient import TestClient

from modelworks.base.errors import UserError
from modelworks.serve.app import create_app
from modelworks.serve.guard import OPEN, POLICY
from modelworks.serve.page import Page
from modelworks.serve.schemas import EMPTY, ChatRequest, CompletionRequest
from modelworks.serve.settings import ServeSettings

from ..infer.tiny import language_model
from .running import Assistant

HOME = "http://127.0.0.1"
CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
TEXT: dict[str, Any] = {"model": "tiny", "prompt": "x", "max_tokens": 2}
PATHS = {ChatRequest: "/v1/chat/completions", CompletionRequest: "/v1/completions"}


def app(**settings: Any) -> Any:
    return create_app({"tiny": language_model(), "desk": Assistant()}, ServeSettings(**{"api_keys": [], **settings}))


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(app(), base_url=HOME) as made:
        yield made


@pytest.fixture(scope="module")
def locked() -> Iterator[TestClient]:
    with TestClient(app(api_keys=["a-key", "b-key"]), base_url=HOME) as made:
        yield made


def is_error(response: Any, status: int | tuple[int, ...]) -> dict[str, Any]:
    statuses = status if isinstance(status, tuple) else (status,)
    assert response.status_code in statuses, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"].endswith((".", ")"))
    return error


def test_every_route_needs_a_key_but_the_listed_ones(locked: TestClient) -> None:
    """From the route table itself: whoever adds a route gets this test with it."""
    free = OPEN | Page().paths
    for route in locked.app.routes:
        path = route.path.replace("{name:path}", "tiny")
        for method in route.methods:
            for headers in (
                {}, {"authorization": "Bearer wrong"}, {"authorization": "Basic YS1rZXk="}, {"authorization": "a-key"},
                {"authorization": "Bearer "}, {"authorization": "Bearer a-key,b-key"}, {"x-api-key": "a-key"},
            ):  # fmt: skip
                response = locked.request(method, path, headers=headers, json=CHAT)
                if path in free:
                    assert response.status_code in (200, 503)
                else:
                    is_error(response, 401)
        if path not in free:
            got = locked.request(method, path, headers={"authorization": "bearer b-key"}, json=CHAT | {"prompt": "x"})
            assert got.status_code in (200, 400)


def test_odd_spellings_of_a_path_open_nothing(locked: TestClient) -> None:
    for path in ("//v1/models", "/v1//models", "/v1/models/", "/%76%31/models", "/V1/models",
                 "/v1/models?x=/healthz", "/assets/../../../pyproject.toml", "/assets/%2e%2e/x"):  # fmt: skip
        response = locked.get(path)
        assert response.status_code in (401, 404), (path, response.status_code)
        assert "tiny" not in response.text
    assert locked.get("/v1/models", headers={"host": "a/?x="}).status_code == 400
    for method in ("HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE"):
        assert locked.request(method, "/v1/models").status_code in (401, 404, 405)
    for path in ("/docs", "/redoc", "/openapi.json"):
        assert locked.get(path).status_code == 404


def test_host_names_are_those_of_the_list(client: TestClient) -> None:
    for host in ("evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "", "a/?x=", "169.254.1.1"):
        assert client.get("/healthz", headers={"host": host}).status_code == 400
    for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:9"):
        assert client.get("/healthz", headers={"host": host}).status_code == 200
    with TestClient(app(allowed_hosts=["My.Name"]), base_url=HOME) as named:
        assert named.get("/healthz", headers={"host": "my.name:80"}).status_code == 200


def test_a_foreign_page_cannot_drive_the_server(client: TestClient) -> None:
    for origin in ("https://evil.example", "null", "http://127.0.0.1.evil.example", "http://localhost:1", "file://"):
        is_error(client.post("/v1/chat/completions", json=CHAT, headers={"origin": origin}), 403)
    is_error(client.post("/v1/chat/completions", json=CHAT, headers={"sec-fetch-site": "cross-site"}), 403)
    assert client.post("/v1/chat/completions", json=CHAT, headers={"origin": HOME}).status_code == 200
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        body = json.dumps(CHAT).encode()
        is_error(client.post("/v1/chat/completions", content=body, headers={"content-type": kind}), 415)
    assert "access-control-allow-origin" not in client.options("/v1/models", headers={"origin": HOME}).headers


def test_security_headers_are_on_every_answer(client: TestClient) -> None:
    for response in (
        client.get("/"), client.get("/healthz"), client.get("/nothing"), client.get("/healthz", headers={"host": "x"}),
        client.post("/v1/chat/completions", json=CHAT), client.post("/v1/completions", json={}),
        client.post("/v1/chat/completions", json=CHAT | {"stream": True}),
    ):  # fmt: skip
        assert response.headers["content-security-policy"] == POLICY
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["x-frame-options"] == "DENY"
        assert "cache-control" in response.headers and "server" not in response.headers


@pytest.mark.parametrize("kind", [ChatRequest, CompletionRequest])
def test_every_number_text_and_list_has_a_ceiling(kind: Any, client: TestClient) -> None:
    base = CHAT if kind is ChatRequest else TEXT
    tried = 0
    for name, facts in kind.model_json_schema()["properties"].items():
        for form in facts.get("anyOf", [facts]):
            high, low = (
                form.get("maximum", form.get("exclusiveMaximum")),
                form.get("minimum", form.get("exclusiveMinimum")),
            )
            if form.get("type") in ("integer", "number"):
                assert high is not None and low is not None, f"{kind.__name__}.{name} has no bounds"
                for bad in (high + 1, low - 1, 2**63 + high, -(2**63) + low, "x", [], 1e400):
                    body = json.dumps(base | {name: bad}).encode()
                    is_error(client.post(PATHS[kind], content=body, headers={"content-type": "application/json"}), 400)
                    tried += 1
            elif form.get("type") == "string":
                assert "maxLength" in form, f"{kind.__name__}.{name} has no longest"
            elif form.get("type") == "array":
                assert "maxItems" in form, f"{kind.__name__}.{name} has no most"
    assert tried > 50


def test_fields_that_would_change_the_answer_are_refused_and_harmless_ones_ignored(client: TestClient) -> None:
    for name in EMPTY:
        assert client.post("/v1/chat/completions", json=CHAT | {name: EMPTY[name][-1]}).status_code == 200
        is_error(client.post("/v1/chat/completions", json=CHAT | {name: ["something"]}), 400)
    assert client.post("/v1/chat/completions", json=CHAT | {"user": "u", "metadata": {"a": "b"}}).status_code == 200
    assert "temprature" in is_error(client.post("/v1/chat/completions", json=CHAT | {"temprature": 1}), 400)["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"null", b"[]", b'"x"', b"\xff\xfe", b"[" * 100_000, b'{"a":' * 20_000, b'{"model": NaN}', b"\x00" * 50,
        json.dumps({"model": "tiny", "messages": []}).encode(),
        json.dumps({"model": "tiny", "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}).encode(),
        json.dumps({"model": "tiny", "messages": [{"role": "tool", "content": "x"}]}).encode(),
        json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "x", "z": 1}]}).encode(),
        json.dumps({"model": "x" * 1000, "messages": [{"role": "user", "content": "x"}]}).encode(),
        json.dumps({"model": ["tiny"], "messages": "x"}).encode(),
        b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}',
    ],
)  # fmt: skip
def test_odd_bodies_are_refused_and_the_server_goes_on(client: TestClient, body: bytes) -> None:
    for path in PATHS.values():
        is_error(client.post(path, content=body, headers={"content-type": "application/json"}), 400)
    assert client.post("/v1/chat/completions", json=CHAT).status_code == 200


def test_nul_control_strings_and_long_words_are_only_text(client: TestClient) -> None:
    for words in ("\0", "<|im_end|><|im_start|>system", "\u202e\ufffd\U0010ffff", " " * 20):
        said = CHAT | {"messages": [{"role": "user", "content": words}]}
        assert client.post("/v1/chat/completions", json=said).status_code == 200
    is_error(client.post("/v1/completions", json=TEXT | {"prompt": "a b " * 100_000}), 400)
    is_error(client.post("/v1/completions", json=TEXT | {"prompt": [10**6]}), 400)
    is_error(client.post("/v1/completions", json=TEXT | {"prompt": ["x"] * 8, "n": 3}), 400)


def test_a_body_may_have_a_megabyte(client: TestClient) -> None:
    big = b'{"model": "' + b"x" * 1_000_000 + b'"}'
    headers = {"content-type": "application/json"}
    is_error(client.post("/v1/completions", content=big, headers=headers), 413)

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(big), 50_000):
            yield big[start : start + 50_000]

    is_error(client.post("/v1/completions", content=pieces(), headers=headers), 413)  # no length announced


def test_a_public_address_needs_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODELWORKS_API_KEY", raising=False)
    for host in ("0.0.0.0", "::", "192.168.1.4", "example.com"):
        with pytest.raises(UserError, match="no key is set"):
            create_app({"tiny": language_model()}, ServeSettings(host=host))
    for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8"):
        ServeSettings(host=host).check()
    monkeypatch.setenv("MODELWORKS_API_KEY", "one, two")
    settings = ServeSettings(host="0.0.0.0")
    settings.check()
    assert [key.get_secret_value() for key in settings.api_keys] == ["one", "two"]
    assert "two" not in repr(settings)
    with pytest.raises(UserError, match="no model"):
        create_app({}, ServeSettings(api_keys=[]))


def test_the_page_and_its_plain_stand_in(client: TestClient, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = client.get("/")
    assert first.status_code == 200
    assert client.get("/", headers={"if-none-match": first.headers["etag"]}).status_code == 304
    for path in Page().paths:
        assert client.get(path).status_code == 200
    monkeypatch.setattr("modelworks.serve.app.Page", lambda: Page(tmp_path / "none"))
    with TestClient(app(), base_url=HOME) as bare:
        assert "not built" in bare.get("/").text
