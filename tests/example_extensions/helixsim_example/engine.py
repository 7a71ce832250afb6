"""An engine that counts: the token behind each position is that position."""

from helixsim.control.prefix_cache import PrefixCache


class CounterEngine:
    """Computes nothing, and keeps block tables as a real engine does."""

    wire_bytes_per_token = 4

    def __init__(self, spec):
        self._is_last = spec.end_layer == spec.num_layers
        self._num_layers = spec.num_layers
        self.kv = PrefixCache(4096, spec.block_tokens)
        self.kv_blocks, self.block_tokens = self.kv.num_blocks, spec.block_tokens

    def run(self, rows, start_layer, end_layer):
        for row in rows:
            tokens = row.position + row.num_tokens
            assert len(self.kv.table(row.request)) * self.block_tokens >= tokens
        if end_layer < self._num_layers:
            return [row.num_tokens for row in rows]
        return [row.position + row.num_tokens if row.wants_token else None for row in rows]

    def pack(self, payloads):
        return [bytes(self.wire_bytes_per_token * sum(payloads))]

    def unpack(self, buffers, num_tokens):
        if len(buffers) != 1 or len(buffers[0]) != self.wire_bytes_per_token * sum(num_tokens):
            raise ValueError("hidden states of a wrong size")
        return list(num_tokens)

    def close(self):
        pass
