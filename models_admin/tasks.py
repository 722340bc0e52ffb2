"""Work on nodes: each has a Celery queue of its own, `node.<name>`. Every task may run twice, late, or never."""

import threading
from collections.abc import Callable
from typing import Any

import structlog
from celery import shared_task
from celery.signals import worker_ready, worker_shutting_down
from django.db import DatabaseError, InterfaceError, close_old_connections
from django_redis import get_redis_connection
from kombu.exceptions import OperationalError
from redis import RedisError

from llamaproj import env
from models_admin import events, lifecycle, scheduler
from models_admin.files import catalog
from models_admin.hub import tasks as download_tasks
from models_admin.models import Node
from models_admin.nodes import facts as node_facts

log = structlog.get_logger(__name__)

_EXPIRES_S = 5.0
_HEARTBEAT_S = 5.0
# Once a minute.
_TIDY_EVERY = 12
_stopping = threading.Event()


@shared_task
def tick() -> None:
    """The clock: every living node looks after its instances."""
    wake_all()


@shared_task
def reconcile_node(name: str) -> None:
    """One pass over the node, and another soon where something is on its way."""
    _forget_waking(name)
    if not node_facts.is_ours(name):
        # Another machine has the name: its processes can't be seen from here, and would count as dead.
        return
    again_in = lifecycle.reconcile(name)
    # One successor at a time, however many passes ask for one.
    if again_in is not None and _first(f"again:{name}", again_in):
        _send(reconcile_node, name, countdown=again_in)


@shared_task
def scan_node(name: str) -> None:
    """Read the node's model folders."""
    catalog.scan(Node.objects.get(name=name))
    events.files_changed()


def wake(node_name: str) -> None:
    """Have the node look after its instances at once. Many calls before it does so are one call."""
    if _first(_waking(node_name), _EXPIRES_S):
        _send(reconcile_node, node_name)


def wake_all() -> None:
    """Have every living node look: a replica may find its place on any."""
    for name in Node.objects.alive().values_list("name", flat=True):
        wake(name)


def _first(key: str, seconds: float) -> bool:
    """True for the first who asks within so many seconds; False without Valkey: the tick comes when it is back."""
    try:
        return bool(
            get_redis_connection().set(f"llamaproj:{key}", 1, nx=True, px=max(1, round(seconds * 1000)))
        )
    except RedisError as error:
        log.warning("a node could not be woken", key=key, error=str(error))
        return False


def ask_scan(node_name: str) -> None:
    """Have the node read its model folders."""
    _send(scan_node, node_name)


@worker_ready.connect
def _on_ready(sender: Any, **_: object) -> None:
    """A node's worker announces itself, looks around once and goes on announcing."""
    if sender.hostname == f"node@{env.NODE_NAME}":
        for name, work in (("heartbeat", _announce), ("housekeeping", _keep_house)):
            threading.Thread(target=work, name=name, daemon=True).start()


@worker_shutting_down.connect
def _on_shutting_down(**_: object) -> None:
    _stopping.set()


def _announce() -> None:
    """Register every few seconds until the worker stops, whatever happens to the database meanwhile.

    Nothing else happens here that could take long: a node that is late counts as silent.
    """
    cut_off = False

    def turn() -> None:
        nonlocal cut_off
        try:
            node = node_facts.register()
        except (DatabaseError, InterfaceError) as error:
            cut_off = True
            log.warning("the node could not announce itself", error=str(error).partition("\n")[0])
            return
        # By this machine's own clock: messages from one whose clock differs may count as expired here.
        wake(node.name)
        if cut_off:
            # The broker is looked for ever more rarely, so the message comes late.
            reconcile_node(node.name)
        cut_off = False

    _again_and_again(turn)


def _keep_house() -> None:
    """Look after files, downloads and what was left behind, as long as the worker runs."""
    turns = 0

    def turn() -> None:
        nonlocal turns
        node = Node.objects.filter(name=env.NODE_NAME).first()
        if node is None:
            return
        if turns == 0 or catalog.changed_since_last_scan(node):
            ask_scan(node.name)
        if turns == 0:
            scheduler.preload()
        if turns % _TIDY_EVERY == 0:
            lifecycle.tidy()
        download_tasks.resume(node)
        turns += 1

    _again_and_again(turn)


def _again_and_again(turn: Callable[[], None]) -> None:
    """A thread's outermost loop: whatever goes wrong in a turn, the next one comes."""
    while True:
        try:
            turn()
        except Exception:
            log.exception(
                "the node's worker could not look after something", thread=threading.current_thread().name
            )
        finally:
            close_old_connections()
        if _stopping.wait(_HEARTBEAT_S):
            return


def _send(task: Any, node_name: str, countdown: float | None = None) -> None:
    try:
        task.apply_async(
            args=[node_name],
            queue=f"node.{node_name}",
            countdown=countdown,
            expires=_EXPIRES_S + (countdown or 0),
            retry=False,
        )
    except (OperationalError, RedisError, OSError) as error:
        log.warning("a task could not be sent", task=task.name, node=node_name, error=str(error))


def _forget_waking(node_name: str) -> None:
    try:
        get_redis_connection().delete(f"llamaproj:{_waking(node_name)}")
    except RedisError:
        return


def _waking(node_name: str) -> str:
    return f"waking:{node_name}"
