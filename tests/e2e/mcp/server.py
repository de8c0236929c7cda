"""An MCP server for the tests: on standard input and output, or over HTTP with `http` as its argument.

It does what its tools are called by, the hostile things too. Standard library only.
"""
import json, os, sys, time

count = 0
SCHEMA = {"type": "object", "properties": {"text": {"type": "string"}}}
# As generators write them; a model's provider takes none of these.
ODD = {
    "count": {"type": "object"},
    "picture": {},
    "env": {"$ref": "#/$defs/none", "$defs": {"none": {"type": "object", "additionalProperties": False}}},
    "fail": {"type": "object", "properties": {"all": {"type": "array"}, "any": True}},
    "ask": {"type": "object", "properties": {"text": {"const": "x"}}, "anyOf": [{"required": ["text"]}, {"required": []}]},
}
TOOLS = ["echo", "count", "write", "env", "ask", "picture", "fail", "crash", "hang", "flood",
         "endless", "junk", "big", "key", "secret", "dotted.name", "half"]


def text(value, **more):
    return {"content": [{"type": "text", "text": value}], **more}


def call(name, arguments, headers):
    global count
    said = arguments.get("text", "")
    if name in ("echo", "dotted.name"):
        return text("you said " + said)
    if name == "count":
        count += 1
        return text("count %d" % count)
    if name == "write":
        open("made-by-mcp.txt", "w").write(said)
        return text("written in " + os.getcwd())
    if name == "env":
        return text("GREETING is " + os.environ.get("GREETING", "nothing"))
    if name == "picture":
        return {"content": [{"type": "image", "mimeType": "image/png", "data": "QUJD"}]}
    if name == "fail":
        return text("it did not work", isError=True)
    if name == "key":
        return text("the key is " + str(headers.get("Authorization")))
    if name == "half":
        # Of a surrogate pair, as JSON has it that was cut between the two.
        return text("half \ud83d and \ud83d\ude00")
    if name == "big":
        return text("x" * 1000000)
    if name == "secret":
        return text("this must not be called")
    raise ValueError("no such tool")


def answer(message, headers={}):
    """The answer to a request; none to a notification."""
    method, number = message.get("method"), message.get("id")
    if number is None:
        return None
    if method == "initialize":
        result = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}},
                  "serverInfo": {"name": "tests", "version": "1"}}
    elif method == "tools/list":
        result = {"tools": [{"name": name, "description": "Does " + name, "inputSchema": ODD.get(name, SCHEMA)}
                            for name in TOOLS]}
    elif method == "tools/call":
        params = message["params"]
        try:
            result = call(params["name"], params.get("arguments") or {}, headers)
        except ValueError as error:
            return {"jsonrpc": "2.0", "id": number, "error": {"code": -32602, "message": str(error)}}
    else:
        return {"jsonrpc": "2.0", "id": number, "error": {"code": -32601, "message": "unknown"}}
    return {"jsonrpc": "2.0", "id": number, "result": result}


def say(message):
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def special(message):
    """What only a program can do. True where it answered, or never will."""
    name = message["params"]["name"]
    if name == "crash":
        sys.stderr.write("it fell over\n")
        sys.stderr.flush()
        os._exit(7)
    if name == "flood":
        while True:
            say({"jsonrpc": "2.0", "method": "notifications/message",
                 "params": {"level": "info", "data": "x" * 1000}})
    if name == "endless":
        while True:
            sys.stdout.write("x" * 65536)
    if name == "junk":
        sys.stdout.buffer.write(b"\xff\xfe not UTF-8\n{\"half\": \n[1,2,3]\n\n\"text\"\n")
        sys.stdout.buffer.write(b'{"jsonrpc":"2.0","id":999,"result":{"content":[]}}\n')
        sys.stdout.flush()
        return False
    if name == "hang":
        for line in sys.stdin:
            if "notifications/cancelled" in line:
                open("cancelled.txt", "w").write(line)
                return True
    if name == "ask":
        asked = {"messages": [], "maxTokens": 1}
        wanted = {"message": "your password?", "requestedSchema": {"type": "object", "properties": {}}}
        say({"jsonrpc": "2.0", "id": "a", "method": "sampling/createMessage", "params": asked})
        say({"jsonrpc": "2.0", "id": "b", "method": "elicitation/create", "params": wanted})
        got = {}
        while len(got) < 2:
            reply = json.loads(sys.stdin.readline())
            got[reply["id"]] = "error" if "error" in reply else reply["result"].get("action")
        say({"jsonrpc": "2.0", "id": message["id"],
             "result": text("sampling: %s, elicitation: %s" % (got["a"], got["b"]))})
        return True
    return False


def program():
    for line in sys.stdin:
        message = json.loads(line)
        if message.get("method") == "tools/call" and special(message):
            continue
        if message.get("method") == "tools/call" and message["params"]["name"] == "junk":
            message["params"]["name"] = "echo"
        reply = answer(message)
        if reply:
            say(reply)


def http():
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    key = os.environ["KEY"]
    log = open(os.environ["LOG"], "a", buffering=1)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def reply(self, status, body=b"", kind="application/json", **headers):
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)

        def do_DELETE(self):
            log.write("DELETE %s\n" % self.headers.get("Mcp-Session-Id"))
            self.reply(204)

        def do_GET(self):
            log.write("GET\n")
            self.reply(405)

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            message = json.loads(body)
            session = self.headers.get("Mcp-Session-Id")
            log.write("POST %s %s %s\n" % (self.path, message.get("method"), session))
            if self.path == "/away":
                return self.reply(307, Location=os.environ["AWAY"])
            if self.path == "/near":
                return self.reply(307, Location="/mcp")
            if self.headers.get("Authorization") != "Bearer " + key:
                refusal = "not with %s" % self.headers.get("Authorization")
                return self.reply(401, refusal.encode(), "text/plain")
            if message.get("method") == "tools/call" and message["params"]["name"] == "hang":
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.end_headers()
                try:
                    while True:
                        self.wfile.write(b": still here\n\n")
                        time.sleep(0.02)
                except OSError:
                    log.write("hung up\n")
                    self.close_connection = True
                    return
            reply = answer(message, self.headers)
            if reply is None:
                return self.reply(202)
            more = {"Mcp_Session_Id": "s-%d" % id(self)} if message["method"] == "initialize" else {}
            body = json.dumps(reply).encode()
            if message["method"] == "tools/call":
                event = b"event: message\ndata: " + body + b"\n\n"
                return self.reply(200, event, "text/event-stream", **more)
            self.reply(200, body, **more)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()


if "http" in sys.argv[1:]:
    http()
else:
    program()
