"""What a program sends into DSPy's stream, on its way to the stream of its caller's DSPy, as it is.

The caller's own listeners read it there: so what they give, keep back and flush is what they would in one process.

Knows no pipes. Imported with DSPy.
"""

from __future__ import annotations

from typing import Any

import dspy
from dspy.streaming import StatusMessage, StreamResponse

from dspool.protocol.messages import LMChunk, Piece, Relay, Status
from dspool.protocol.modules import modules_in
from dspool.worker.call_loop import Outlet
from dspool.worker.field_streams import chunk_of
from dspool.worker.running import item_of


class RelayStream:
    """`settings.send_stream` of one call.

    Args:
        modules: those of the program, in their order.
        outlet: where the pieces go.
    """

    def __init__(self, modules: list[Any], outlet: Outlet) -> None:
        self._places = {id(module): place for place, module in enumerate(modules)}
        self._outlet = outlet

    async def send(self, value: Any) -> None:
        """Take what DSPy sends, or a program of its own accord; waits as long as the caller doesn't read."""
        await self._outlet.put(self._piece(value))

    def _piece(self, value: Any) -> Piece:
        if isinstance(value, StatusMessage):
            return Status(str(value.message))
        if isinstance(value, StreamResponse):
            return chunk_of(value)
        if hasattr(value, "choices") and hasattr(value, "model_dump"):  # a chunk of an LM's answer
            chunk = item_of(value.model_dump())
            if isinstance(chunk.value, dict):
                return LMChunk(chunk.value, self._places.get(getattr(value, "predict_id", None) or 0))
        return item_of(value)


class _Listened:
    """Stands for a listener of the caller's: DSPy streams the predictors that have one."""

    def __init__(self, predict: Any) -> None:
        self.predict = predict


class _Below:
    """A status callback that is not told of the program's own call: the caller's DSPy tells of that.

    Args:
        callback: DSPy's.
        module: the program.
    """

    def __init__(self, callback: Any, module: Any) -> None:
        self._callback = callback
        self._module = module
        self._call_id: str | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._callback, name)

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """A module begins."""
        if self._call_id is None and instance is self._module:
            self._call_id = call_id
        else:
            self._callback.on_module_start(call_id=call_id, instance=instance, inputs=inputs)

    def on_module_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        """A module has ended."""
        if call_id != self._call_id:
            self._callback.on_module_end(call_id=call_id, outputs=outputs, exception=exception)


def relay_settings(module: Any, relay: Relay, status: list[Any], outlet: Outlet) -> dict[str, Any]:
    """DSPy's settings for a call whose pieces go to its caller's stream; in the call's context.

    Args:
        module: the program.
        relay: what the caller wants of it.
        status: the caller's status callbacks.
        outlet: where the pieces go.
    """
    modules = modules_in(module)
    listeners = []
    if relay.predictors is not None:
        listened = [modules[place] for place in relay.predictors if place < len(modules)]
        listeners = [_Listened(predictor) for predictor in listened or [None]]  # none at all would mean every predictor
    callbacks = [*dspy.settings.callbacks, *(_Below(callback, module) for callback in status)]
    return {"send_stream": RelayStream(modules, outlet), "stream_listeners": listeners, "callbacks": callbacks}
