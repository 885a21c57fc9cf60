"""How glibc gives memory to training processes: their parent says it, they read it at once."""

# What a step frees the next one needs again: it is kept, in huge pages, instead of given back.
_KEEPS = {
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
# Of a sharded model what was gathered goes back to the kernel: it is sharded to need less.
_GIVES_BACK = {"MALLOC_TRIM_THRESHOLD_": str(1 << 20), "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}


def allocator(*, shard: bool) -> dict[str, str]:
    """Return the environment of processes whose model is sharded, or whole."""
    return _GIVES_BACK if shard else _KEEPS
