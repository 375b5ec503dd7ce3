"""Tile sizes, and into how many splits a row's keys go: reasoned, not searched. Knows numbers only.

Nothing is tuned while serving: a search would hold up the first requests, and a choice that depends on the moment would
let equal steps round differently.
"""

from typing import NamedTuple

from tokenmill_worker.engine.attention.triton.device import Device

MAX_SPLITS = 64


class Heads(NamedTuple):
    """What one attention layer looks like."""

    num_heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    itemsize: int  # bytes

    @property
    def group(self) -> int:
        return self.num_heads // self.kv_heads

    @property
    def widest(self) -> int:
        return power_of_two(max(self.key_dim, self.value_dim))


class Tiling(NamedTuple):
    """`rows` = tokens x query heads of one KV head, `keys` of one iteration, of which `ahead` more are being loaded."""

    rows: int
    keys: int
    warps: int
    ahead: int
    programs: int = 1  # on each processor, before splits have no more to give

    @property
    def stages(self) -> int:
        """Triton's pipeline deals its stages out evenly between page numbers and the keys that these lead to."""
        return 2 * self.ahead + 1

    def tokens(self, group: int) -> int:
        return self.rows // group


def power_of_two(number: int) -> int:
    """The smallest that is no less."""
    return 1 << (number - 1).bit_length()


def decode_tiling(heads: Heads, device: Device) -> Tiling:
    """One token a row. The rows are the group, 16 at least: the smallest product that tensor cores know.

    64 keys of 128 dimensions are 32 KB with their values. Two of these ahead in each of the three programs that fit on
    a processor ask for far more than the 23 KB that its share of the memory's bandwidth (some 33 GB/s, 0.7 us away)
    needs under way at any moment.
    """
    keys = max(16, min(64, 64 * 256 // (heads.widest * heads.itemsize)))
    return _fitted(Tiling(max(16, power_of_two(heads.group)), keys, 4, ahead=2, programs=4), heads, device)


def chunk_tiling(heads: Heads, device: Device) -> Tiling:
    """Many tokens a row. 128 rows share each load of keys; their float32 sums must stay in registers.

    A warp group of four warps multiplies 64 rows at a time: 128 rows of 128 dimensions are 64 registers a thread in
    eight warps. At 256 dimensions half the rows keep that. float32 has no tensor cores here (rounding to ten bits would
    be another result), so its tiles are those of plain multiplication.
    """
    least = power_of_two(heads.group)
    if heads.itemsize > 2:
        return _fitted(Tiling(max(16, least), 32, 4, ahead=0), heads, device)
    if heads.widest <= 64:
        return _fitted(Tiling(max(128, least), 64, 4, ahead=2), heads, device)
    if heads.widest <= 128:
        return _fitted(Tiling(max(128, least), 64, 8, ahead=2), heads, device)
    return _fitted(Tiling(max(64, least), 64, 8, ahead=1), heads, device)


def num_splits(num_tiles: int, heads: Heads, tiling: Tiling, device: Device) -> int:
    """Enough programs for the device however few rows there are; decided by counts that a CUDA graph fixes."""
    wanted = device.num_processors * tiling.programs // max(1, num_tiles * heads.kv_heads)
    return max(1, min(MAX_SPLITS, wanted))


def _fitted(tiling: Tiling, heads: Heads, device: Device) -> Tiling:
    """With as much ahead, and then as many keys, as the device's shared memory holds: some have 100 KB, not 227."""
    while _shared_bytes(tiling, heads) > device.shared_bytes and tiling.ahead > 1:
        tiling = tiling._replace(ahead=tiling.ahead - 1)
    while _shared_bytes(tiling, heads) > device.shared_bytes and tiling.keys > 16:
        tiling = tiling._replace(keys=tiling.keys // 2)
    return tiling


def _shared_bytes(tiling: Tiling, heads: Heads) -> int:
    """Queries, the weights between the products, the keys and values in work and those ahead."""
    key_dim, value_dim = power_of_two(heads.key_dim), power_of_two(heads.value_dim)
    held = tiling.rows * (key_dim + tiling.keys) + (tiling.ahead + 1) * tiling.keys * (key_dim + value_dim)
    return held * heads.itemsize
