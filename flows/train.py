"""The flow of training: labelled cases in; decoder, converter and their card out."""

from __future__ import annotations

from pathlib import Path

from prefect import flow
from prefect.runtime import flow_run

from flows.cancellation import cancellable
from flows.gpu import gpu_slot
from flows.parameters import DEFAULTS, SettingsParameter
from medad_core.store.lock import held
from tasks.policy import with_policy
from tasks.whole import Trained, train_weights


def _run_name() -> str:
    return f"train-{Path(flow_run.parameters['data']).name}-{Path(flow_run.parameters['out']).name}"


@flow(name="train", description="Labelled cases to weights.", persist_result=False, flow_run_name=_run_name)
def train(
    data: str, out: str, settings: SettingsParameter = DEFAULTS, licence: str = "not stated", limits: str = ""
) -> Trained:
    """Train decoder and converter on every labelled case below `data`; run it again to resume."""
    from medad_core.models.device import device_of

    def work() -> Trained:
        with held(out), gpu_slot(device_of(settings)):
            return with_policy(train_weights, "train", settings.flow)(data, out, settings, licence, limits)

    return cancellable(work)
