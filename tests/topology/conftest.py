"""Fixtures of the topologies' tests. Each server set is started once for a module."""

from collections.abc import Iterator

import pytest

from tests.support.topologies import Cluster, SecureServer, running_cluster, running_tls


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Whole, and left whole: who breaks one starts one of its own."""
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def secure() -> Iterator[SecureServer]:
    with running_tls() as server:
        yield server
