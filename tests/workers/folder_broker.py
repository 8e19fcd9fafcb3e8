"""A broker that needs no server: messages are files of a folder."""

from __future__ import annotations

from pathlib import Path

from celery import Celery


def made(folder: Path) -> Celery:
    """An app whose messages lie in this folder: the worker's, and a client's with `send_task("observed.unit", ...)`."""
    (folder / "done").mkdir(parents=True, exist_ok=True)
    app = Celery("observed", broker="filesystem://", set_as_current=False)
    app.conf.update(
        broker_transport_options={
            "data_folder_in": str(folder), "data_folder_out": str(folder),
            "processed_folder": str(folder / "done"), "control_folder": str(folder / "control"),
        },
        task_ignore_result=True, worker_enable_remote_control=False, task_default_queue="andp.gpu", task_acks_late=True,
        task_reject_on_worker_lost=True, worker_lost_wait=1.0,
    )  # fmt: skip
    return app
