"""The same as `upstream_routing` in PyTorch, which is what upstream's engine runs on."""

from __future__ import annotations

import statistics
import time

import jax
import torch

from benchmarks.upstream_routing import SLICE_CHUNKS

_ROUNDS, _CALLS = 5, 3


class TorchRouter:
    """A memory in upstream's layout, `[1, K, C, H]` in slices, on the device of `keys`.

    Args:
        keys: `[C, K*H]` JAX array of unit keys.
        num_kv_heads: K.
        chunk_doc: `[C]` document of each chunk.
        num_documents: M.
    """

    def __init__(
        self, keys: jax.Array, num_kv_heads: int, chunk_doc: jax.Array, num_documents: int
    ):
        num_chunks = keys.shape[0]
        heads = torch.from_dlpack(keys).view(num_chunks, num_kv_heads, -1)
        heads = heads.transpose(0, 1).contiguous()[None]
        owners = torch.from_dlpack(chunk_doc).long()
        self._num_kv_heads, self._num_documents = num_kv_heads, num_documents
        self._slices = [
            (
                heads[:, :, start : start + SLICE_CHUNKS].transpose(-1, -2).unsqueeze(2),
                owners[start : start + SLICE_CHUNKS],
            )
            for start in range(0, num_chunks, SLICE_CHUNKS)
        ]

    @torch.inference_mode()
    def route(
        self, queries: jax.Array, query_mask: jax.Array, top_k_docs: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The best documents for queries `[B, T, N, H]` of unit length per head."""
        queries = torch.from_dlpack(queries)
        mask = torch.from_dlpack(query_mask.astype("int8")).bool()
        batch, num_tokens, _, head_dim = queries.shape
        queries = queries.transpose(1, 2).reshape(
            batch, self._num_kv_heads, -1, num_tokens, head_dim
        )
        hidden, lowest = ~mask[:, None, None, :, None], torch.finfo(queries.dtype).min
        documents = queries.new_full((batch, self._num_documents), lowest)
        for keys, owners in self._slices:
            per_head = torch.matmul(queries, keys).masked_fill_(hidden, lowest)
            scores = per_head.flatten(1, 2).mean(dim=1).max(dim=1).values
            documents.scatter_reduce_(1, owners.expand(batch, -1), scores, "amax")
        return torch.topk(documents, min(top_k_docs, self._num_documents), dim=1)

    def median_ms(self, *arguments) -> float:
        """Milliseconds of `route`, as `timing.median_ms` takes them."""
        self.route(*arguments)
        rounds = []
        for _ in range(_ROUNDS):
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(_CALLS):
                self.route(*arguments)
            torch.cuda.synchronize()
            rounds.append((time.perf_counter() - start) / _CALLS)
        return 1e3 * statistics.median(rounds)
