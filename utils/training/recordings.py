"""Recordings of what a GPU does: one for each shape of a function's inputs, without gradients or with them.

A CUDA graph repeats the recorded kernels at the same addresses. So inputs are copied to where the recording read
them, and results are copied from where it wrote them. The recordings of one function share their memory, as only one
of them is in use at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

logger = logging.getLogger(__name__)

WARM_UP = 2  # runs before a recording: compilation, choice of kernels
MAX_RECORDINGS = 64  # of one function; further shapes run without

Run = Callable[[], None]
Place = tuple[nn.Module, str]  # of a weight: its module, and its name there
Recording = TypeVar("Recording")


class Recorder(Protocol):
    """Records what the device does."""

    def warm_up(self, run: Run) -> None:
        """Calls `run` before its work is recorded."""
        ...

    def record(self, run: Run) -> Run:
        """Calls `run`; returns what has the device do the same on the same tensors."""
        ...


class CudaRecorder:
    """Records CUDA graphs, which share one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._pool = device, torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    def warm_up(self, run: Run) -> None:
        """See `Recorder`: on the stream of the recording, which libraries prepare their memory for."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UP):
                run()
        current.wait_stream(self._stream)

    def record(self, run: Run) -> Run:
        """See `Recorder`."""
        graph = torch.cuda.CUDAGraph()
        # The threads of the loader and of NCCL use the device meanwhile.
        with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
            run()
        return graph.replay


class RecordedCall:
    """A function without gradients for inputs of one shape."""

    def __init__(
        self, function: Callable[..., Tensor], inputs: Sequence[Tensor | None], recorder: Recorder
    ) -> None:
        self._inputs = [clone(each) for each in inputs]

        def run() -> None:
            with torch.no_grad():
                self._result = function(*self._inputs)

        with same_random_numbers(inputs):
            recorder.warm_up(run)
            self._replay = recorder.record(run)

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        """The function's result for these inputs."""
        copy(inputs, self._inputs)
        self._replay()
        return self._result.clone()


class RecordedPass:
    """A function with gradients for inputs of one shape: one recording forward and one backward."""

    def __init__(
        self,
        function: Callable[..., Tensor],
        first: Tensor,
        others: Sequence[Tensor | None],
        places: Sequence[Place],
        recorder: Recorder,
    ) -> None:
        """For these inputs; gradients are those w.r.t. the first of them and w.r.t. the weights at these places."""
        first = first.detach().clone().requires_grad_()
        self._inputs = [first, *map(clone, others)]
        # Not the weights themselves: autograd adds to their gradients on the stream where it first did, which may be
        # another than the one that is recorded.
        weights = [nn.Parameter(module.get_parameter(name).detach()) for module, name in places]
        learned = [first, *weights]

        def forward() -> None:
            with torch.enable_grad(), in_place(places, weights):
                self._in_graph = function(*self._inputs)
            self._result = self._in_graph.detach()

        def backward() -> None:
            self._gradients = torch.autograd.grad(
                self._in_graph, learned, self._gradient_of_result, allow_unused=True
            )
            del self._in_graph  # with what it saved: the memory serves the next recording

        def both() -> None:
            forward()
            self._gradient_of_result = torch.zeros_like(self._result)
            backward()

        with same_random_numbers(self._inputs):
            recorder.warm_up(both)
            self._gradient_of_result = torch.zeros_like(self._gradient_of_result)
            self._replay_forward = recorder.record(forward)
            self._replay_backward = recorder.record(backward)

    def forward(self, *inputs: Tensor | None) -> Tensor:
        """The function's result for these inputs."""
        copy(inputs, self._inputs)
        self._replay_forward()
        return self._result.clone()

    def backward(self, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of the last `forward`; the argument is that w.r.t. its result."""
        self._gradient_of_result.copy_(gradient)
        self._replay_backward()
        return tuple(clone(each) for each in self._gradients)


class Replay(torch.autograd.Function):
    """A recorded pass as one node of autograd's graph."""

    @staticmethod
    def forward(
        ctx: Any, owner: Recordings, found: RecordedPass, num_inputs: int, *tensors: Tensor | None
    ) -> Tensor:
        """`tensors`: inputs, then weights."""
        owner.passes += 1
        ctx.owner, ctx.found, ctx.number, ctx.num_unlearned = owner, found, owner.passes, num_inputs - 1
        return found.forward(*tensors[:num_inputs])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients w.r.t. the first input and the weights."""
        assert ctx.owner.passes == ctx.number, "another pass has used the memory of this one"
        first, *others = ctx.found.backward(gradient)
        return None, None, None, first, *[None] * ctx.num_unlearned, *others


class Recordings:
    """The recordings of one part of a model, by the shapes of their inputs."""

    def __init__(self, module: nn.Module, recorder: Recorder) -> None:
        self._recorder = recorder
        self._weights = [*module.parameters(), *module.buffers()]
        self._known: dict[Any, Any] = {}
        self._addresses: list[int] = []
        self._is_full = False
        self.passes = 0

    def find(
        self, inputs: Sequence[Tensor | None], make: Callable[[Recorder], Recording]
    ) -> Recording | None:
        """The recording for inputs of these shapes, made if there is none; None if there are too many."""
        addresses = [weight.data_ptr() for weight in self._weights]
        if addresses != self._addresses:  # before the first, and after weights were moved
            self._known, self._addresses = {}, addresses
        key = tuple(None if each is None else (each.shape, each.dtype) for each in inputs)
        if key not in self._known:
            if len(self._known) >= MAX_RECORDINGS:
                if not self._is_full:
                    logger.warning(
                        "--cuda_graphs: %d shapes are recorded, others run without; a larger --pad_to_multiple_of "
                        "makes fewer of them",
                        MAX_RECORDINGS,
                    )
                self._is_full = True
                return None
            self._known[key] = make(self._recorder)
        return self._known[key]

    def call(self, function: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
        """The result of a function without gradients, which is always the same one; from a recording if possible."""
        found = self.find(inputs, lambda recorder: RecordedCall(function, inputs, recorder))
        return (found or function)(*inputs)


@contextmanager
def in_place(places: Sequence[Place], weights: Sequence[nn.Parameter]) -> Iterator[None]:
    """These weights at these places."""
    before = [module.get_parameter(name) for module, name in places]
    try:
        for (module, name), weight in zip(places, weights, strict=True):
            setattr(module, name, weight)
        yield
    finally:
        for (module, name), weight in zip(places, before, strict=True):
            setattr(module, name, weight)


def same_random_numbers(tensors: Sequence[Tensor | None]) -> AbstractContextManager[None]:
    """What is drawn inside is drawn again afterwards."""
    devices = {each.device for each in tensors if each is not None and each.is_cuda}
    return torch.random.fork_rng(devices=list(devices))


def clone(tensor: Tensor | None) -> Tensor | None:
    """A copy outside of any graph."""
    return None if tensor is None else tensor.detach().clone()


def copy(values: Sequence[Tensor | None], into: Sequence[Tensor | None]) -> None:
    """Overwrites the tensors of a recording."""
    for value, target in zip(values, into, strict=True):
        if value is not None and target is not None:
            target.data.copy_(value)
