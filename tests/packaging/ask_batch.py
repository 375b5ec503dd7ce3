"""Asks a gateway for a batch of two requests over HTTP and waits for its output: a check of the composed system.

python -m tests.packaging.ask_batch http://127.0.0.1:8000
"""

import json
import sys

import httpx2 as httpx

from tests.support.waiting import wait_until

BODY = {"model": "echo", "max_tokens": 4, "messages": [{"role": "user", "content": "hello"}]}


def lines() -> str:
    asked = [
        {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": BODY} for name in ("one", "two")
    ]
    return "".join(json.dumps(line) + "\n" for line in asked)


def main(url: str) -> None:
    with httpx.Client(base_url=f"{url}/v1", timeout=30) as client:
        upload = {"file": ("batch.jsonl", lines(), "application/jsonl")}
        file = client.post("/files", files=upload, data={"purpose": "batch"}).raise_for_status().json()
        asked = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        batch = client.post("/batches", json=asked).raise_for_status().json()["id"]

        def status() -> str:
            return str(client.get(f"/batches/{batch}").raise_for_status().json()["status"])

        wait_until(lambda: status() in ("completed", "failed"), description="the batch ends", timeout=60)
        output = client.get(f"/batches/{batch}").json()["output_file_id"]
        answers = client.get(f"/files/{output}/content").raise_for_status().text.splitlines()
    assert len(answers) == 2, answers
    sys.stdout.write(f"batch {batch}: {len(answers)} answers\n")


if __name__ == "__main__":
    main(sys.argv[1])
