"""A run's rows in the shape of OpenAI's Batch output and error files. Knows no files but those two.

Ids come from the row hash and `created` is the run's, so the same run gives the same bytes wherever it ran. A row that
was refused has a response with an HTTP status and OpenAI's error object; one that never became a request, or whose
request was ended by somebody, has an `error` and no response.
"""

import hashlib
from typing import Any

from tokenmill.bulk.batch_lines import COMPLETIONS
from tokenmill.bulk.identity import canonical
from tokenmill.bulk.output import encode_line
from tokenmill.bulk.outputs.paths import OutputPaths
from tokenmill.bulk.outputs.replacing import replacing
from tokenmill.bulk.outputs.source import RunRows
from tokenmill.bulk.rows import JSON, Fields

_NO_RESPONSE = {"bad_row": "invalid_json_line", "cancelled": "batch_cancelled", "expired": "batch_expired"}
_STATUS = {"model_not_found": 404, "too_large": 413}
_SERVER_FAULTS = frozenset(
    ("lost", "worker_crashed", "engine_error", "internal_error", "out_of_memory", "non_finite_logits", "error")
)


def write_openai(rows: RunRows, paths: OutputPaths) -> None:
    """The error file is there only when a row failed."""
    with replacing(paths.out) as file:
        for row in rows.done():
            file.write(encode_line(output_line(row, model=rows.model, created=rows.created)))
    failed = rows.failed()
    first = next(failed, None)
    if first is None:
        return paths.out_errors.unlink(missing_ok=True)
    with replacing(paths.out_errors) as file:
        file.write(encode_line(error_line(first)))
        for row in failed:
            file.write(encode_line(error_line(row)))


def output_line(row: Fields, *, model: str | None, created: int) -> Fields:
    """A finished row, from the run's own form."""
    name = str(row["row_hash"])
    body = _completion(row, model=model, created=created)
    response: Fields = {"status_code": 200, "request_id": f"req_{name}", "body": body}
    return {"id": f"batch_req_{name}", "custom_id": row["custom_id"], "response": response, "error": None}


def error_line(row: Fields) -> Fields:
    """A failed row, from the run's own form. Only a line that was no JSON has no custom_id."""
    error = _object(row.get("error"))
    code, message = str(error.get("code")), str(error.get("message"))
    name = str(row.get("row_hash") or hashlib.sha256(canonical([row.get("row"), row.get("input")])).hexdigest()[:32])
    line: Fields = {"id": f"batch_req_{name}", "custom_id": _custom_id(row), "response": None, "error": None}
    if code in _NO_RESPONSE:
        return {**line, "error": {"code": _NO_RESPONSE[code], "message": _with_line(row, code, message)}}
    is_ours = code in _SERVER_FAULTS
    kind = "server_error" if is_ours else "invalid_request_error"
    body: Fields = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    status = 500 if is_ours else _STATUS.get(code, 400)
    return {**line, "response": {"status_code": status, "request_id": f"req_{name}", "body": body}}


def _with_line(row: Fields, code: str, message: str) -> str:
    return f"line {row.get('row')}: {message}" if code == "bad_row" else message


def _custom_id(row: Fields) -> JSON:
    return row.get("custom_id") or _object(row.get("input")).get("custom_id")


def _completion(row: Fields, *, model: str | None, created: int) -> Fields:
    source = _object(row["input"])
    is_text = source.get("url") == COMPLETIONS
    return {
        "id": f"{'cmpl' if is_text else 'chatcmpl'}-{row['row_hash']}",
        "object": "text_completion" if is_text else "chat.completion",
        "created": created,
        "model": model or _object(source.get("body")).get("model") or "default",
        "choices": [_text_choice(choice) if is_text else _chat_choice(choice) for choice in _choices(row)],
        "usage": row["usage"],
        "system_fingerprint": None,
    }


def _choices(row: Fields) -> list[Fields]:
    choices = row.get("choices")
    if not isinstance(choices, list):
        return [{**row, "index": 0}]
    return [_object(choice) for choice in choices]


def _chat_choice(choice: Fields) -> Fields:
    probabilities = _probabilities(choice)
    content: list[JSON] = [_chat_logprob(*one) for one in probabilities]
    return {
        "index": choice["index"],
        "message": {"role": "assistant", "content": choice["text"], "refusal": None},
        "logprobs": {"content": content, "refusal": None} if probabilities else None,
        "finish_reason": choice["finish_reason"],
    }


def _text_choice(choice: Fields) -> Fields:
    """`text_offset` is left empty: where a token begins in the text is known to the tokenizer alone."""
    probabilities = _probabilities(choice)
    logprobs: Fields = {
        "tokens": [_token(token) for token, _, _ in probabilities],
        "token_logprobs": [logprob for _, logprob, _ in probabilities],
        "top_logprobs": [{_token(other): value for other, value in top} for _, _, top in probabilities],
        "text_offset": [],
    }
    names = ("index", "text", "finish_reason")
    return {**{name: choice[name] for name in names}, "logprobs": logprobs if probabilities else None}


def _probabilities(choice: Fields) -> list[tuple[int, float, list[tuple[int, float]]]]:
    """(token id, its logprob, the likeliest ones' ids and logprobs) for each token; empty: not asked for."""
    told: Any = choice.get("logprobs")
    ids: Any = choice["token_ids"]
    return [(token, one["logprob"], one["top"]) for token, one in zip(ids, told, strict=False)] if told else []


def _chat_logprob(token: int, logprob: float, top: list[tuple[int, float]]) -> Fields:
    others: list[JSON] = [{"token": _token(other), "logprob": value, "bytes": None} for other, value in top]
    return {"token": _token(token), "logprob": logprob, "bytes": None, "top_logprobs": others}


def _token(token_id: int) -> str:
    """The text of a token is the worker's to know; vLLM writes ids so when it is asked for ids."""
    return f"token_id:{token_id}"


def _object(value: JSON) -> Fields:
    return value if isinstance(value, dict) else {}
