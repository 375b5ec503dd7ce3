"""Rows of a dataset on the Hugging Face hub, streamed: hf://owner/name[@revision][/config][:split].

The package `datasets` does the work; it is an extra of its own, since it brings pandas along.
"""

import itertools
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from tokenmill.bulk.inputs.columnar import rows_of
from tokenmill.bulk.inputs.places import HUB, Place
from tokenmill.bulk.rows import BadRow, InputError, Row

BATCH_ROWS = 1_024
DEFAULT_SPLIT = "train"

_NAME = re.compile(
    r"(?P<path>/[^@:]+|[^/@:]+(?:/[^/@:]+)?)(?:@(?P<revision>[^/:]+))?(?:/(?P<config>[^/@:]+))?(?::(?P<split>[^/]+))?"
)


class HubName(NamedTuple):
    """`path` is owner/name, or a folder when it begins with a slash."""

    path: str
    revision: str | None
    config: str | None
    split: str


def parse_hub_name(url: str) -> HubName:
    match = _NAME.fullmatch(url.removeprefix(HUB))
    if match is None:
        raise InputError(f"{url}: a dataset of the hub is written hf://owner/name[@revision][/config][:split]")
    return HubName(match["path"], match["revision"], match["config"], match["split"] or DEFAULT_SPLIT)


def read_hub(place: Place, first: int) -> Iterator[Row | BadRow]:
    """Rows numbered from `first`. InputError: no such dataset or split, no network, `datasets` not installed."""
    name = parse_hub_name(place.url)
    datasets = _import_datasets()
    try:
        dataset = datasets.load_dataset(
            name.path, name.config, split=name.split, revision=name.revision, streaming=True
        )
        dataset = _with_media_as_stored(datasets, dataset)
        batches = (table for table in dataset.with_format("arrow").iter(batch_size=BATCH_ROWS))
        yield from rows_of(place, _record_batches(batches), first)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise InputError(f"{place.url}: {error}") from error


def count_hub(place: Place) -> int | None:
    """What the dataset's card says; None: it does not, and only reading all of it would tell."""
    name = parse_hub_name(place.url)
    datasets = _import_datasets()
    try:
        builder = datasets.load_dataset_builder(name.path, name.config, revision=name.revision)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise InputError(f"{place.url}: {error}") from error
    split = (builder.info.splits or {}).get(name.split)
    return None if split is None or not split.num_examples else int(split.num_examples)


def _import_datasets() -> Any:
    try:
        import datasets
        import datasets.exceptions
    except ModuleNotFoundError as error:
        raise InputError("datasets of the hub need the package datasets: pip install 'tokenmill[datasets]'") from error
    return datasets


def _with_media_as_stored(datasets: Any, dataset: Any) -> Any:
    """Images and sounds stay bytes: nothing here looks at them, and decoding them needs more packages."""
    for column, feature in (dataset.features or {}).items():
        if isinstance(feature, (datasets.Image, datasets.Audio)):
            dataset = dataset.cast_column(column, type(feature)(decode=False))
    return dataset


def _record_batches(tables: Iterator[Any]) -> Iterator[Any]:
    return itertools.chain.from_iterable(table.to_batches() for table in tables)
