"""Logits that the load guard found and checked once, on disk: a warm start does not compute them in float32 again.

Only what is dear and cannot change is kept, the plain forward's logits and how near the packed ones have to be. The
packed forward itself is compared with them at every start. Knows no model.
"""

import hashlib
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

MAX_BYTES = 1 << 29  # of the files used last: SmolLM2's has 21 MB, a vocabulary of 256 thousand makes 114

_logger = logging.getLogger(__name__)


class Known(NamedTuple):
    logits: list[Tensor]  # [T, V] of each sequence, float32
    allowed: float  # difference from them, of the packed logits


class Memory:
    """What is known of one model as it runs here: `traits` are all that its logits, and trust in them, depend on."""

    def __init__(self, folder: Path, traits: Sequence[str]) -> None:
        everything = [*traits, torch.__version__, transformers.__version__, _cpu(), _sources()]
        digest = hashlib.sha256("\0".join(everything).encode()).hexdigest()[:32]
        self._file = folder / f"{digest}.safetensors"

    def recall(self, lengths: Sequence[int]) -> Known | None:
        """What was kept for sequences of these lengths. A file that cannot be read is as good as none."""
        try:
            with safe_open(self._file, "pt") as content:
                known = Known(
                    [content.get_tensor(str(number)) for number in range(len(lengths))],
                    float(content.metadata()["allowed"]),
                )
            os.utime(self._file)
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            _logger.warning("%s cannot be read and is made anew: %s", self._file, error)
            return None
        return known if [len(rows) for rows in known.logits] == list(lengths) else None

    def keep(self, known: Known) -> None:
        """Whole or not at all. Without room or permission nothing is kept, and the next start takes longer."""
        tensors = {str(number): rows.float().cpu().contiguous() for number, rows in enumerate(known.logits)}
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".making-", dir=self._file.parent) as making:
                made = Path(making) / self._file.name
                save_file(tensors, made, metadata={"allowed": repr(known.allowed)})
                made.chmod(0o644)  # an image's cache is read by whoever runs it
                os.replace(made, self._file)
            _forget_oldest(self._file.parent)
        except (OSError, SafetensorError) as error:  # also when another process forgot a file meanwhile
            _logger.info("The load guard's logits are not kept for the next start: %s", error)


def _forget_oldest(folder: Path) -> None:
    room = MAX_BYTES
    for file in sorted(folder.glob("*.safetensors"), key=_last_used, reverse=True):
        room -= file.stat().st_size
        if room < 0:
            file.unlink(missing_ok=True)


def _last_used(file: Path) -> float:
    return file.stat().st_mtime


def _cpu() -> str:
    return torch.backends.cpu.get_cpu_capability()


def _sources() -> str:
    """Of the engine: what another version of it checked says nothing of this one."""
    digest = hashlib.sha256()
    folder = Path(__file__).parent
    for file in sorted(folder.rglob("*.py")):
        digest.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes())
    return digest.hexdigest()
