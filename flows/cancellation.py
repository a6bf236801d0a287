"""A flow run that somebody cancels on the server ends as cancelled, and its command fails.

One decision: a worker ends the process of a cancelled run, but nobody ends a command's own: Prefect would let it go on,
and call it completed. So a flow run asks the server for its own state before each flow run within it and at its end. If
it was cancelled, its state is Cancelled, and who waits for it gets Prefect's CancelledRun. Stage files stay, as after
any other end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

from prefect import get_client
from prefect.context import FlowRunContext
from prefect.exceptions import CancelledRun
from prefect.states import Cancelled

Result = TypeVar("Result")


def cancellable(work: Callable[[], Result]) -> Result:
    """What a flow returns: the result of `work`, or the state Cancelled where this flow run or one within it is."""
    try:
        result = work()
        stop_if_cancelled()
    except CancelledRun as error:
        # Prefect takes a state that a flow returns for that of its run, and raises CancelledRun where it was called.
        return cast(Result, Cancelled(message=str(error)))
    return result


def stop_if_cancelled() -> None:
    """Raise CancelledRun where the server says that the current flow run was cancelled."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(context.flow_run.id).state
    if state is not None and (state.is_cancelled() or state.is_cancelling()):
        raise CancelledRun(f"flow run {context.flow_run.name} was cancelled on the server")
