"""Where a request stands, in a queue of one partition or several. Pure."""

import re

from tokenmill.wire.keys import Keys, all_keys, partition_of

_NAMED_BY_ITS_ENTRY = re.compile(r"[0-9q]-[0-9]+-[0-9]+")


class Places:
    """Raw entries without an id go to the last partition: so no two of them are called the same."""

    def __init__(self, queue: str = "default", partitions: int = 1) -> None:
        self.queue = queue
        self.all = all_keys(queue, partitions)

    def of(self, request_id: str) -> Keys:
        if _NAMED_BY_ITS_ENTRY.fullmatch(request_id):
            return self.all[-1]
        return self.all[partition_of(request_id, len(self.all))]
