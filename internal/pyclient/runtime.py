class APIError(Exception):
    """An answer that is not a success.

    status: of HTTP: 400 a bad request, 403 not allowed, 404 nothing by that name, 409 not now, 422 a bad policy, 503 too much at once.
    message: what is wrong, and what would help.
    details: the faults of policies: where each is, and what to write instead.
    """

    def __init__(self, status: int, message: str, details: List[Detail]):
        super().__init__(message)
        self.status = status
        self.message = message
        self.details = details

    def __str__(self) -> str:
        lines = [f"{self.status}: {self.message}"]
        for d in self.details:
            where = ":".join(str(d[k]) for k in ("file", "line", "column") if d.get(k))  # type: ignore[literal-required]
            hint = f" ({d['hint']})" if d.get("hint") else ""
            lines.append(f"  {where}: {d['msg']}{hint}")
        return "\n".join(lines)


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout: Optional[float]):
        super().__init__("pavise", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        end = time.monotonic() + 5
        while True:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(self.timeout)
            try:
                return self.sock.connect(self._path)
            except BlockingIOError:  # more wait at the socket than it can hold
                self.sock.close()
                if time.monotonic() > end:
                    raise
                time.sleep(0.01)
            except BaseException:
                self.sock.close()
                raise


def _policies(policies: Union[str, bytes], sets: Optional[Mapping[str, bytes]], part: str, prefix: str) -> Tuple[bytes, str]:
    """The body of a request that sends policies, and what it is."""
    data = policies.encode() if isinstance(policies, str) else policies
    if not sets:
        return data, "application/yaml"
    boundary = secrets.token_hex(24)
    out = b""
    for name, content in [(part, data)] + [(prefix + n, c) for n, c in sets.items()]:
        if any(c in name for c in '"\r\n\\'):
            raise ValueError(f"set {name!r}: a name with quotes or line ends cannot be sent")
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="file"\r\n\r\n'
        out += head.encode() + content + b"\r\n"
    return out + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


class _Base:
    def __init__(self, path: str = SOCKET, timeout: float = 60):
        """path is the agent's socket. timeout, in seconds, is for each answer; a stream may be silent for longer."""
        self.path = path
        self.timeout = timeout

    def _open(
        self, method: str, path: str, query: Mapping[str, Any], body: Optional[bytes] = None, kind: str = "", stream: bool = False
    ) -> Tuple[_Connection, http.client.HTTPResponse]:
        given = [(k, v) for k, vs in query.items() if vs is not None for v in (vs if isinstance(vs, list) else [vs])]
        url = path + ("?" + urllib.parse.urlencode([(k, int(v) if isinstance(v, bool) else v) for k, v in given]) if given else "")
        conn = _Connection(self.path, self.timeout)
        try:
            try:
                conn.request(method, url, body=body, headers={"Content-Type": kind} if kind else {})
            except (BrokenPipeError, ConnectionResetError):
                pass  # the agent has refused before it had read everything: it says why
            answer = conn.getresponse()
            if answer.status >= 300:
                raise _error(answer)
            if stream and conn.sock is not None:
                conn.sock.settimeout(None)
            return conn, answer
        except BaseException:
            conn.close()
            raise

    def _text(self, *args: Any) -> str:
        conn, answer = self._open(*args)
        try:
            return answer.read().decode()
        finally:
            conn.close()

    def _json(self, *args: Any) -> Any:
        return json.loads(self._text(*args))

    def _lines(self, *args: Any) -> Iterator[Any]:
        conn, answer = self._open(*args, stream=True)
        try:
            for line in answer:
                yield json.loads(line)
        finally:
            conn.close()


def _error(answer: http.client.HTTPResponse) -> APIError:
    text = answer.read().decode(errors="replace")
    try:
        error = json.loads(text)["error"]
        return APIError(answer.status, error["message"], error.get("details", []))
    except (ValueError, KeyError, TypeError):
        return APIError(answer.status, text.strip() or answer.reason, [])


def _segment(value: Union[str, int]) -> str:
    return urllib.parse.quote(str(value), safe="")
