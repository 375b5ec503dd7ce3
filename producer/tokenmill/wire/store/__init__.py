"""Typed calls of the scripts: how a transition is built and run. The one place that speaks to the server."""

from tokenmill.wire.store.calls import Call, Command, Operation, Procedure, Script, Steps, checked, translate
from tokenmill.wire.store.connection import DEFAULT_URL, connect, connect_async
from tokenmill.wire.store.faults import PASSING
from tokenmill.wire.store.gate import Admission, GateTransitions, Verdict
from tokenmill.wire.store.notes import Noted, forget, leave_note, recall
from tokenmill.wire.store.procedures import CancelReply
from tokenmill.wire.store.routes import hide_password, is_spread
from tokenmill.wire.store.runner import AsyncStore, Attempt, Store
from tokenmill.wire.store.runs import Reclaimed, RunRecord, RunRenewal, RunTransitions
from tokenmill.wire.store.transitions import Transitions
from tokenmill.wire.store.values import (
    BeginReply,
    Claim,
    Delivery,
    Durability,
    Finish,
    FinishReply,
    Held,
    JobInfo,
    LaneStatistics,
    Publication,
    PublishReply,
    Quarantined,
    QueueStatistics,
    Renewal,
    RetryReply,
    Submission,
    SubmitReply,
    WorkerStatistics,
)

__all__ = [
    "DEFAULT_URL",
    "PASSING",
    "Admission",
    "AsyncStore",
    "Attempt",
    "BeginReply",
    "Call",
    "CancelReply",
    "Claim",
    "Command",
    "Delivery",
    "Durability",
    "Finish",
    "FinishReply",
    "GateTransitions",
    "Held",
    "JobInfo",
    "LaneStatistics",
    "Noted",
    "Operation",
    "Procedure",
    "Publication",
    "PublishReply",
    "Quarantined",
    "QueueStatistics",
    "Reclaimed",
    "Renewal",
    "RetryReply",
    "RunRecord",
    "RunRenewal",
    "RunTransitions",
    "Script",
    "Steps",
    "Store",
    "Submission",
    "SubmitReply",
    "Transitions",
    "Verdict",
    "WorkerStatistics",
    "checked",
    "connect",
    "connect_async",
    "forget",
    "hide_password",
    "is_spread",
    "leave_note",
    "recall",
    "translate",
]
