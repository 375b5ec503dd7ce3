"""A multipart upload, read as it comes: small fields kept, the one file passed on. Knows no disk and no HTTP server."""

from collections.abc import Callable

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

MAX_FIELD_BYTES = 4_096  # of a field that is no file: purpose, expiry
MAX_FIELDS = 32
MAX_FILENAME_CHARS = 255

Fields = dict[str, str]


class UploadError(ValueError):
    """This form is no upload; `param` is the field at fault."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class UploadTooLargeError(UploadError):
    """The file is larger than files may be."""


class UploadForm:
    """`feed` it the body, then `finish`. `write` gets the content of the field `file`, in pieces."""

    def __init__(self, content_type: str, write: Callable[[bytes], None], *, max_bytes: int) -> None:
        """UploadError: the body is no multipart form."""
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise UploadError("send the file as multipart/form-data with a boundary, as OpenAI's clients do")
        self.fields: Fields = {}
        self.filename: str | None = None
        self._write = write
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._header = (b"", b"")
        self._headers: dict[bytes, bytes] = {}
        self._name = ""
        self._value = b""
        self._is_file = self._is_over = False
        self._parser = self._make_parser(boundary)

    def _make_parser(self, boundary: bytes) -> MultipartParser:
        try:
            return MultipartParser(
                boundary,
                {
                    "on_part_begin": self._on_part_begin,
                    "on_header_field": self._on_header_field,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": self._on_part_data,
                    "on_part_end": self._on_part_end,
                    "on_end": self._on_end,
                },
            )
        except FormParserError as error:
            raise UploadError(f"the form's boundary is not usable: {error}") from error

    def feed(self, data: bytes) -> None:
        """UploadError: broken, too large, or with a second file."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise UploadError(f"the multipart form is broken: {error}") from error

    def finish(self) -> None:
        """UploadError: the body ended before the form did, or there is no file in it."""
        if not self._is_over:
            raise UploadError("the multipart form is cut short")
        if self.filename is None:
            raise UploadError("the form has no file: send it in the field 'file'", "file")
        if self._num_bytes == 0:
            raise UploadError("the file is empty", "file")

    # --- what the parser calls ---

    def _on_part_begin(self) -> None:
        self._headers, self._header = {}, (b"", b"")
        self._value = b""

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header = (self._header[0] + data[start:end], self._header[1])

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header = (self._header[0], self._header[1] + data[start:end])

    def _on_header_end(self) -> None:
        name, value = self._header
        self._headers[name.lower()] = value
        self._header = (b"", b"")

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        self._is_file = self._name == "file"
        if not self._is_file:
            return
        if self.filename is not None:
            raise UploadError("the form has more than one file: upload them one by one", "file")
        self.filename = _printable(options.get(b"filename", b"").decode("utf-8", "replace")) or "upload.jsonl"

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if not self._is_file:
            self._value += data[start:end]
            if len(self._value) > MAX_FIELD_BYTES:
                raise UploadError(f"the field {self._name[:100]!r} is too long", self._name[:100])
            return
        self._num_bytes += end - start
        if self._num_bytes > self._max_bytes:
            raise UploadTooLargeError(f"the file is larger than {self._max_bytes:,} bytes: upload it in parts", "file")
        self._write(data[start:end])

    def _on_part_end(self) -> None:
        if self._is_file:
            return
        if len(self.fields) >= MAX_FIELDS:
            raise UploadError("the form has too many fields")
        self.fields[self._name] = self._value.decode("utf-8", "replace")

    def _on_end(self) -> None:
        self._is_over = True


def _printable(name: str) -> str:
    """The last part of a path, without what a terminal or a header would take for a command."""
    last = name.replace("\\", "/").rpartition("/")[2]
    return "".join(each for each in last if each.isprintable())[:MAX_FILENAME_CHARS]
