"""The server reaches maxmemory under load: new requests are put off, running ones go on, and nothing is lost."""

from pathlib import Path

import pytest
from tokenmill import Client, QueueBusyError

from tests.acceptance.fleet import Load, running_fleet
from tests.queue.harness import Bench


def test_a_full_server_puts_new_requests_off_and_finishes_the_running_ones(own: Bench, tmp_path: Path) -> None:
    load, later = Load.echo(16, max_tokens=40), Load.echo(4, max_tokens=4, name="later")
    with running_fleet(own, tmp_path) as fleet, Client(own.url) as client:
        (worker,) = fleet.start_ready()
        load.submit(own)
        load.wait_published(own, 40)
        own.server.config_set("maxmemory", 1)
        for name, fields in later.requests.items():
            with pytest.raises(QueueBusyError) as caught:
                client.submit(id=name, **fields)
            assert caught.value.retry_after_s > 0
        load.wait_final(own, 8)  # what ran when the memory went, finishes all the same
        own.server.config_set("maxmemory", 0)
        later.submit(own)
        load.wait_final(own)
        later.wait_final(own)
        load.assert_answered(own)
        later.assert_answered(own)
        assert fleet.num_drawn == load.num_tokens + later.num_tokens
        assert worker.terminate() == 0
    assert own.is_at_rest()
