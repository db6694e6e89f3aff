"""The judge against a small server of our own, which answers as endpoints do, well and badly."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from msa_jax.config import ConfigError
from msa_jax.evaluation import judge
from msa_jax.evaluation.judge import Answer, JudgeConfig, JudgeError, parse_grade

KEY = "sk-very-secret"


def completion(text: str | None) -> bytes:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


class Server(ThreadingHTTPServer):
    """One that many may call at once, and that does not mind when they hang up."""

    request_queue_size = 64

    def handle_error(self, *_):
        pass


class Endpoint:
    """A server on this machine; `respond` says what it answers to each request.

    Attributes:
        requests: bodies that came, in order, and in `headers` and `paths` what came with them.
        most_at_once: requests that were being answered at the same time, at most.
    """

    def __init__(self, respond):
        self.requests, self.headers, self.paths = [], [], []
        self.most_at_once = self._now = 0
        lock, endpoint = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(endpoint.requests)
                    endpoint.requests.append(body)
                    endpoint.headers.append(self.headers)
                    endpoint.paths.append(self.path)
                    endpoint._now += 1
                    endpoint.most_at_once = max(endpoint.most_at_once, endpoint._now)
                answer = respond(body, number)
                with lock:
                    endpoint._now -= 1
                if answer is None:
                    return  # The connection is closed without a word.
                status, content, headers = answer
                self.send_response(status)
                for name, value in {"Content-Length": len(content), **headers}.items():
                    self.send_header(name, str(value))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setattr(judge, "_FIRST_WAIT", 0.001)
    monkeypatch.delenv("JUDGE_API_KEY", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    endpoints = []

    def start(respond) -> Endpoint:
        endpoints.append(Endpoint(respond))
        return endpoints[-1]

    yield start
    for endpoint in endpoints:
        endpoint.close()


def replies(*answers):
    """Answers one after the other, the last one for ever: bodies, statuses, or None."""

    def respond(body, number):
        answer = answers[min(number, len(answers) - 1)]
        if isinstance(answer, int):
            return answer, b'{"error": {"message": "not now"}}', {}
        return answer if answer is None or isinstance(answer, tuple) else (200, answer, {})

    return respond


def asked(body) -> dict:
    """The question and answers of a request."""
    return json.loads(body["messages"][1]["content"])


ONE = [Answer("Which bird sings?", ("the nightingale", "nightingales"), "A nightingale.")]


def answers(count: int) -> list[Answer]:
    return [Answer(f"question {i}", (str(i),), f"answer {i}") for i in range(count)]


def test_grades_come_back_in_the_order_of_the_answers(serve):
    def respond(body, number):
        return 200, completion(str(int(asked(body)["question"].split()[1]) % 6)), {}

    endpoint, done = serve(respond), []
    config = JudgeConfig(endpoint.url, "grader")
    assert judge.judge(config, answers(40), done.append) == [i % 6 for i in range(40)]
    assert sum(done) == 40 and len(endpoint.requests) == 40


def test_a_request_has_all_that_a_grade_needs(serve, monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", KEY + "\n")
    endpoint = serve(replies(completion("4")))
    assert judge.judge(JudgeConfig(endpoint.url + "/v1/", "grader"), ONE) == [4]
    (body,) = endpoint.requests
    assert endpoint.paths == ["/v1/chat/completions"]
    assert endpoint.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert body["model"] == "grader" and body["temperature"] == 0
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert asked(body) == {
        "question": "Which bird sings?",
        "accepted answers": ["the nightingale", "nightingales"],
        "answer given": "A nightingale.",
    }


def test_without_a_key_none_is_sent_and_a_temperature_can_be_left_out(serve):
    endpoint = serve(replies(completion("5")))
    judge.judge(JudgeConfig(endpoint.url, "grader", temperature=None), ONE)
    assert "Authorization" not in endpoint.headers[0]
    assert "temperature" not in endpoint.requests[0]


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("http://host:8000", "http://host:8000/v1/chat/completions"),
        ("https://host/v1/", "https://host/v1/chat/completions"),
        ("https://host/api/v1", "https://host/api/v1/chat/completions"),
        ("https://host/x/chat/completions?version=2", "https://host/x/chat/completions?version=2"),
    ],
)
def test_a_url_may_be_given_with_or_without_its_path(url, endpoint):
    assert JudgeConfig(url, "m").endpoint == endpoint


@pytest.mark.parametrize("trouble", [429, 503, 500, 408, None])
def test_what_may_pass_is_tried_again(serve, trouble):
    endpoint = serve(replies(trouble, trouble, completion("3")))
    assert judge.judge(JudgeConfig(endpoint.url, "grader"), ONE) == [3]
    assert len(endpoint.requests) == 3


def test_a_silent_endpoint_is_asked_again(serve):
    release = threading.Event()

    def respond(body, number):
        if number == 0:
            release.wait(20)
        return 200, completion("2"), {}

    endpoint = serve(respond)
    assert judge.judge(JudgeConfig(endpoint.url, "grader", timeout=0.2), ONE) == [2]
    release.set()
    assert len(endpoint.requests) == 2


def test_waits_grow_and_are_those_that_the_endpoint_asks_for(serve, monkeypatch):
    waits = []
    monkeypatch.setattr(threading.Event, "wait", _recorded(threading.Event.wait, waits))
    busy = (429, b"", {"Retry-After": "7"})
    endpoint = serve(replies(500, 500, busy, (429, b"", {"Retry-After": "9999"}), 503))
    with pytest.raises(JudgeError):
        judge.judge(JudgeConfig(endpoint.url, "grader"), ONE)
    assert len(waits) == 5
    assert 0 < waits[0] <= judge._FIRST_WAIT < waits[4] <= 16 * judge._FIRST_WAIT
    assert waits[2:4] == [7.0, judge._LONGEST_WAIT]


def _recorded(wait, waits):
    """`Event.wait` that does not wait between requests."""

    def recorded(self, timeout=None):
        if timeout is None or threading.current_thread() is threading.main_thread():
            return wait(self, timeout)
        waits.append(timeout)
        return False

    return recorded


def test_an_endpoint_that_keeps_failing_is_one_error(serve):
    endpoint = serve(replies(503))
    with pytest.raises(JudgeError, match="did not answer in 3 attempts, the last: HTTP 503.*not n"):
        judge.judge(JudgeConfig(endpoint.url, "grader", attempts=3), ONE)
    assert len(endpoint.requests) == 3


def test_nobody_there_is_one_error(serve):
    endpoint = serve(replies(503))
    endpoint.close()
    with pytest.raises(JudgeError, match="did not answer in 2 attempts.*see that it runs"):
        judge.judge(JudgeConfig(endpoint.url, "grader", attempts=2), answers(20))


@pytest.mark.parametrize(
    ("status", "key", "message"),
    [
        (401, "", "refused: HTTP 401 .*put an API key into the environment variable JUDGE_API_KEY"),
        (403, KEY, "refused: HTTP 403 .*put a key that it accepts into"),
        (404, KEY, "refused: HTTP 404 .*correct judge.url, judge.model"),
        (400, "", "refused: HTTP 400 no such thing"),
    ],
)
def test_a_refusal_ends_it_at_once_without_giving_the_key_away(
    serve, monkeypatch, status, key, message
):
    monkeypatch.setenv("JUDGE_API_KEY", key)
    endpoint = serve(replies((status, b"no such\n thing as " + KEY.encode(), {})))
    config = JudgeConfig(endpoint.url, "grader", requests_at_once=2)
    with pytest.raises(JudgeError, match=message) as raised:
        judge.judge(config, answers(50))
    assert not key or KEY not in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(endpoint.requests) < 10, "the others were not sent"


def test_a_request_is_not_sent_on_to_another_place(serve, monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", KEY)
    other = serve(replies(completion("5")))
    endpoint = serve(replies((302, b"", {"Location": other.url + "/v1/chat/completions"})))
    with pytest.raises(JudgeError, match="refused: HTTP 302"):
        judge.judge(JudgeConfig(endpoint.url, "grader"), ONE)
    assert not other.requests


@pytest.mark.parametrize(
    "body", [b"<html>hello</html>", b"{}", b'{"choices": []}', b"[1]", b"\xff"]
)
def test_what_is_no_chat_endpoint_is_one_error(serve, body):
    endpoint = serve(replies(body))
    with pytest.raises(JudgeError, match="which is no chat completion; correct judge.url"):
        judge.judge(JudgeConfig(endpoint.url, "grader"), ONE)
    assert len(endpoint.requests) == 1


def test_a_reply_without_a_grade_is_asked_for_once_more(serve):
    endpoint = serve(replies(completion("It is splendid!"), completion("Grade: 4")))
    assert judge.judge(JudgeConfig(endpoint.url, "grader"), ONE) == [4]
    first, second = (body["messages"] for body in endpoint.requests)
    assert second[:2] == first
    assert second[2] == {"role": "assistant", "content": "It is splendid!"}
    assert second[3]["role"] == "user"


@pytest.mark.parametrize("text", ["no idea", "", None])
def test_a_model_that_gives_no_grade_costs_that_grade_alone(serve, text):
    def respond(body, number):
        return 200, completion(text if asked(body)["question"] == "question 1" else "5"), {}

    endpoint = serve(respond)
    assert judge.judge(JudgeConfig(endpoint.url, "grader"), answers(3)) == [5, None, 5]
    assert len(endpoint.requests) == 4
    assert all(message["content"] for body in endpoint.requests for message in body["messages"])


def test_as_many_requests_at_once_as_allowed_and_no_more(serve):
    together = threading.Barrier(3)

    def respond(body, number):
        together.wait(20)  # Breaks, and fails the request, unless three come together.
        return 200, completion("1"), {}

    endpoint = serve(respond)
    config = JudgeConfig(endpoint.url, "grader", requests_at_once=3)
    assert judge.judge(config, answers(12)) == [1] * 12
    assert endpoint.most_at_once == 3


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ("4", 4),
        (" 0\n", 0),
        ("**5**", 5),
        ("4.0", 4),
        ("Score: 3", 3),
        ("**Grade:** 2", 2),
        ("The grade is 1.", 1),
        ("a score of 5, clearly", 5),
        ('{"score": 3, "reason": "2 facts of 7 are missing"}', 3),
        ("```json\n{'grade': 4}\n```", 4),
        ("4/5", 4),
        ("Rating: 4 / 5", 4),
        ("I would give 3 out of 5.", 3),
        ("Score (0-5): 2", 2),
        ("On a scale from 0 to 5, this is a 4.", 4),
        ("It names 2 of the 3 cities.\n\n3", 3),
        ("At first a score of 5. But it is wrong. Final score: 1", 1),
        ("<think>score: 5? or 4</think>\n2", 2),
        ("perhaps score: 5</think>3", 3),
        ("\\boxed{4}", 4),
        ("<think>score: 5? The ans", None),
        ("", None),
        ("good", None),
        ("6", None),
        ("-1", None),
        ("10", None),
        ("45", None),
        ("3.5", None),
        ("Score: 3.5", None),
        ("Score: 10", None),
        ("Score: 3/10", None),
        ("Score: 3-4", None),
        ("between 3 and 4", None),
        ("3 or 4", None),
        ("It names 2 of the 3 cities.", None),
        ("2 cities are right", None),
        ("five", None),
    ],
)
def test_a_grade_is_read_where_it_is_plain(reply, grade):
    assert parse_grade(reply) == grade


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"url": "localhost:8000"}, "judge.url must be http"),
        ({"url": "file:///etc/passwd"}, "judge.url must be http"),
        ({"requests_at_once": 0}, "judge.requests_at_once must be a positive whole number"),
        ({"attempts": 0}, "judge.attempts must be a positive whole number"),
        ({"timeout": 0.0}, "judge.timeout must be a positive number"),
    ],
)
def test_a_bad_configuration_names_its_field(changes, message):
    with pytest.raises(ConfigError, match=message):
        JudgeConfig(**{"url": "http://host", "model": "m"} | changes)


def test_a_key_that_cannot_be_sent_is_an_error(monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", "se\ncret")
    with pytest.raises(ConfigError, match="JUDGE_API_KEY is no API key"):
        judge.judge(JudgeConfig("http://127.0.0.1:1", "m"), ONE)
