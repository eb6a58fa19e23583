"""From Jupyter's messages to the lines that the SDK reads, one JSON object each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .kernels import Message

Line = Mapping[str, Any]

KEEPALIVE: Line = {"type": "keepalive"}
END: Line = {"type": "end_of_execution"}

FORMATS = {
    "text/html": "html",
    "text/markdown": "markdown",
    "image/svg+xml": "svg",
    "image/png": "png",
    "image/jpeg": "jpeg",
    "application/pdf": "pdf",
    "text/latex": "latex",
    "application/json": "json",
    "application/javascript": "javascript",
    "e2b/data": "data",
    "e2b/chart": "chart",
}
"""Which field of a result each MIME type fills; ``text/plain`` fills ``text``, all others go to ``extra``."""


def encode(line: Line) -> bytes:
    """One line, as it is sent."""
    return json.dumps(line, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def line_of(message: Message) -> Line | None:
    """What the SDK is told of a message; None for what it does not hear of."""
    content = message.content
    match message.kind:
        case "stream":
            name = "stderr" if content["name"] == "stderr" else "stdout"
            return {"type": name, "text": content["text"], "timestamp": message.at}
        case "execute_input":
            return {"type": "number_of_executions", "execution_count": content["execution_count"]}
        case "error":
            traceback = "\n".join(content["traceback"])
            return error(content["ename"], content["evalue"], traceback)
        case "execute_result":
            return _result(content["data"], main=True)
        case "display_data" | "update_display_data":
            return _result(content["data"], main=False)
    return None


def error(name: str, value: str, traceback: str = "") -> Line:
    """The line that says that an execution failed."""
    return {"type": "error", "name": name, "value": value, "traceback": traceback}


def _result(bundle: Mapping[str, Any], *, main: bool) -> Line:
    result: dict[str, Any] = {"type": "result", "is_main_result": main}
    extra: dict[str, Any] = {}
    for mime, value in bundle.items():
        if mime == "text/plain":
            result["text"] = _without_quotes(value)
        elif mime in FORMATS:
            result[FORMATS[mime]] = value
        else:
            extra[mime] = value
    return result | {"extra": extra} if extra else result


def _without_quotes(text: str) -> str:
    """A string's representation without the quotes around it, as the SDK's users expect of results."""
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if quoted else text
