"""Asks a gateway through litellm, whole and streamed; prints both texts as JSON. Argument: BASE_URL."""

import json
import sys

import litellm

BASE_URL = sys.argv[1]
ASKED = {
    "model": "openai/echo",
    "api_base": BASE_URL,
    "api_key": "none",
    "messages": [{"role": "user", "content": "Why is the sky blue?"}],
    "max_tokens": 20,
    "temperature": 0,
}

whole = litellm.completion(**ASKED)
stream = litellm.completion(**ASKED, stream=True, stream_options={"include_usage": True})
parts = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
answer = {
    "whole": whole.choices[0].message.content,
    "streamed": "".join(parts),
    "tokens": whole.usage.completion_tokens,
}
sys.stdout.write(json.dumps(answer) + "\n")
