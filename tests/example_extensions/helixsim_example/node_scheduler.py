"""A node scheduler: first come, first served, at most so many requests in a step."""

from helixsim.steps import Batch, Step

MOST_REQUESTS = 32


class FifoScheduler:
    """Runs requests in order of arrival through all layers, without an account of KV blocks."""

    counts_kv = False

    def __init__(self, inputs):
        self.kv = inputs.kv
        self.running = None
        self._bounds = (*sorted({inputs.start_layer, *inputs.entry_layers}), inputs.end_layer)
        self._entry = {}
        self._waiting = []

    def enter(self, layer, batch):
        for request in batch.requests:
            self._entry[request] = layer
            self._waiting.append(request)

    def schedule(self):
        self.running = None
        if not self._waiting:
            return None
        taken, self._waiting = self._waiting[:MOST_REQUESTS], self._waiting[MOST_REQUESTS:]
        step = Step([], self._bounds)
        if self.kv is not None:  # a real engine writes into blocks
            step.preempted = [request for request in taken if not self._allocate(request)]
            taken = [request for request in taken if request not in step.preempted]
        step.passes = [Batch.of(taken)]
        step.entry_layers = {request: self._entry[request] for request in taken}
        self.running = step
        return step

    def finish_pass(self, step, number):
        batch, step.passes[number] = step.passes[number], Batch([], 0, 0)
        return batch if batch.requests else None

    def drop_unless(self, is_wanted):
        self._waiting = [request for request in self._waiting if is_wanted(request)]
        if self.running is not None:
            self.running.passes = [
                Batch.of([request for request in batch.requests if is_wanted(request)])
                for batch in self.running.passes
            ]
        if self.kv is not None:
            self.kv.drop_unless(is_wanted)

    def release(self, request):
        self._entry.pop(request, None)
        return self.kv is not None and self.kv.release(request)

    def reset(self):
        self.drop_unless(lambda request: False)
        self.running = None

    @property
    def num_waiting(self):
        return len(self._waiting)

    queue_length = num_waiting

    @property
    def waiting_tokens(self):
        return sum(request.num_new_tokens for request in self._waiting)

    def validate(self):
        assert len(set(self._waiting)) == len(self._waiting), "one-place: a request waits twice"
        if self.kv is not None:
            self.kv.validate()

    def _allocate(self, request):
        tokens = request.num_computed_tokens + request.num_new_tokens
        missing = self.kv.missing(request, tokens, self._entry[request])
        if missing > self.kv.num_free:
            self.kv.release(request)
            return False
        self.kv.allocate(request, missing)
        return True
