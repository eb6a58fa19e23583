"""What listens inside the sandbox of the domain tests: a web server and a WebSocket echo, in plain Python."""

SERVICES = r'''
import base64, collections, hashlib, json, queue, socket, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

asked = collections.defaultdict(queue.Queue)


class Web(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def body(self):
        if self.headers.get("transfer-encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            left = int(self.headers.get("content-length", 0))
            while left > 0:
                piece = self.rfile.read(min(left, 65536))
                left -= len(piece)
                yield piece

    def say(self, value):
        text = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self):
        if self.path.startswith("/events/"):
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("connection", "close")
            self.end_headers()
            while True:
                self.wfile.write(b"data: %s\n\n" % asked[self.path].get())
                self.wfile.flush()
        elif self.path.startswith("/bytes/"):
            size = int(self.path.rpartition("/")[2])
            self.send_response(200)
            self.send_header("content-length", str(size))
            self.end_headers()
            for _ in range(size >> 16):
                self.wfile.write(bytes(65536))
        else:
            self.say({name.lower(): value for name, value in self.headers.items()})

    def do_POST(self):
        digest, size, last = hashlib.sha256(), 0, b""
        for last in self.body():
            digest.update(last)
            size += len(last)
        if self.path.startswith("/events/"):
            asked[self.path].put(last)
        self.say({"size": size, "sha256": digest.hexdigest()})


def echo(connection):
    """Just enough of a WebSocket: sends every frame back."""
    stream = connection.makefile("rwb")
    key = b""
    while (line := stream.readline().strip()):
        name, _, value = line.partition(b":")
        if name.lower() == b"sec-websocket-key":
            key = value.strip()
    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    stream.write(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
                 b"sec-websocket-accept: " + accept + b"\r\n\r\n")
    stream.flush()
    while head := stream.read(2):
        size = head[1] & 127
        length = {126: 2, 127: 8}.get(size, 0)
        extended = stream.read(length)
        size = int.from_bytes(extended, "big") if length else size
        mask = stream.read(4)
        masks = int.from_bytes((mask * (size // 4 + 1))[:size], "big")
        whole = int.from_bytes(stream.read(size), "big") ^ masks
        stream.write(bytes((head[0], head[1] & 127)) + extended + whole.to_bytes(size, "big"))
        stream.flush()
        if head[0] & 15 == 8:
            return


def sockets(listener):
    while True:
        threading.Thread(target=echo, args=(listener.accept()[0],), daemon=True).start()


web = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Web)
listener = socket.create_server(("127.0.0.1", int(sys.argv[2])))
threading.Thread(target=sockets, args=(listener,), daemon=True).start()
print("ready", flush=True)
web.serve_forever()
'''
