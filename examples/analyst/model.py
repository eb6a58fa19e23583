"""One turn of a model that speaks OpenAI's chat completions, streamed."""

from __future__ import annotations

import http.client
import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

from outside import Broken, post

MODEL = os.environ.get("ANALYST_MODEL", "gpt-4o-mini")
ANSWER_MAX = 1 << 20
"""Bytes of an answer."""
TELL_S = 0.5
"""How often whoever watches is told what has been said so far."""


def think(step: str, messages: list[Any], tools: list[Any], tell: Callable[[str], None]) -> dict[str, Any]:
    """The model's next message: its text, and the tools that it calls."""
    body = {"model": MODEL, "messages": messages, "tools": tools, "stream": True}
    url = os.environ["OPENAI_BASE_URL"] + "/chat/completions"
    return post(url, step, body, lambda answer: _assembled(answer, tell))


def _assembled(answer: http.client.HTTPResponse, tell: Callable[[str], None]) -> dict[str, Any]:
    """The message that the pieces add up to. Broken if the stream ends before it."""
    text, whole = "", False
    calls: dict[int, dict[str, str]] = {}
    told_at = time.monotonic()
    for event in _events(answer):
        for choice in event.get("choices", ())[:1]:
            delta = choice.get("delta", {})
            text += delta.get("content") or ""
            for piece in delta.get("tool_calls") or ():
                call = calls.setdefault(piece["index"], {"id": "", "name": "", "arguments": ""})
                call["id"] = piece.get("id") or call["id"]
                function = piece.get("function", {})
                call["name"] += function.get("name") or ""
                call["arguments"] += function.get("arguments") or ""
            whole = whole or choice.get("finish_reason") is not None
        if time.monotonic() - told_at > TELL_S:
            tell(text)
            told_at = time.monotonic()
    if not whole:
        raise Broken("the stream was cut off")
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if calls:
        message["tool_calls"] = [_call(calls[index]) for index in sorted(calls)]
    return message


def _call(call: dict[str, str]) -> dict[str, Any]:
    function = {"name": call["name"], "arguments": call["arguments"]}
    return {"id": call["id"], "type": "function", "function": function}


def _events(answer: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """Server-sent events, up to ``[DONE]`` or the end of what comes."""
    size = 0
    while line := answer.readline(ANSWER_MAX):
        size += len(line)
        if size > ANSWER_MAX:
            raise Broken("the answer is too long")
        data = line.strip().removeprefix(b"data:").strip()
        if data == b"[DONE]":
            answer.read(64)  # to the end of the body: then the bridge knows that we have all of it
            return
        if line.startswith(b"data:"):
            try:
                yield json.loads(data)
            except ValueError:
                raise Broken("half an event") from None
