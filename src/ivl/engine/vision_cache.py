"""Features of tiles that were seen before, by the content of the tile."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor


class VisionCache:
    """Features (tokens_per_tile, hidden) of tiles by the digest of their pixels, at most
    `max_bytes` of them; the least recently used go first. One thread uses it."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._features: OrderedDict[bytes, Tensor] = OrderedDict()

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._features

    def __len__(self) -> int:
        return len(self._features)

    def get(self, digest: bytes) -> Tensor | None:
        found = self._features.get(digest)
        if found is not None:
            self._features.move_to_end(digest)
        return found

    def put(self, digest: bytes, features: Tensor) -> None:
        """Keeps the features, unless they alone are more than the cache may hold."""
        if digest in self._features or features.nbytes > self.max_bytes:
            return
        # A view would keep alive all the tiles that were encoded with it.
        self._features[digest] = features.clone()
        self.num_bytes += features.nbytes
        while self.num_bytes > self.max_bytes:
            _, oldest = self._features.popitem(last=False)
            self.num_bytes -= oldest.nbytes
