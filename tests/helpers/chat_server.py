"""A chat model's server on this machine that misbehaves as it is told."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def completion(text, usage=True):
    answer = {"choices": [{"message": {"role": "assistant", "content": text}}]}
    return answer | ({"usage": {"prompt_tokens": 100, "completion_tokens": 10}} if usage else {})


class Server:
    """Answers each request by ``respond(body, number)``, called with the request's number.

    ``respond`` returns a text (the completion), a mapping (the JSON body), bytes (the body as it
    is), an int (an HTTP status), a pair (status, headers), or a float (seconds of silence).
    """

    def __init__(self, respond):
        self.respond = respond
        self.requests = []
        self.headers = []
        self.times = []
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()

    @contextmanager
    def counted(self, body, headers):
        with self._lock:
            number = len(self.requests)
            self.requests.append(body)
            self.headers.append(dict(headers))
            self.times.append(time.monotonic())
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            yield number
        finally:
            with self._lock:
                self.at_once -= 1


@contextmanager
def served(respond):
    """The base URL of a server, and the server with what it was asked."""
    server = Server(respond)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.counted(body, self.headers) as number:
                answer = server.respond(body, number)
                if isinstance(answer, float):
                    time.sleep(answer)
                    answer = 500
            self.reply(answer)  # after it the client may ask again, before this one returns

        def reply(self, answer):
            status, headers = 200, {}
            if isinstance(answer, int):
                status, answer = answer, {"error": {"message": "as told"}}
            elif isinstance(answer, tuple):
                (status, headers), answer = answer, {"error": {"message": "as told"}}
            elif isinstance(answer, str):
                answer = completion(answer)
            content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            try:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            except OSError:
                pass  # the client has gone

        def log_message(self, *words):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}/v1", server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
