"""Asks a gateway through langchain-openai, whole and streamed; prints both texts as JSON. Argument: BASE_URL."""

import json
import sys

from langchain_openai import ChatOpenAI

model = ChatOpenAI(
    model="echo", base_url=sys.argv[1], api_key="none", max_tokens=20, temperature=0, stream_usage=True, max_retries=0
)
whole = model.invoke("Why is the sky blue?")
streamed = "".join(chunk.content for chunk in model.stream("Why is the sky blue?"))
answer = {"whole": whole.content, "streamed": streamed, "tokens": whole.usage_metadata["output_tokens"]}
sys.stdout.write(json.dumps(answer) + "\n")
