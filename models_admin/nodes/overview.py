"""A node as the nodes page shows it."""

from collections import defaultdict
from dataclasses import dataclass
from datetime import timedelta

from django.db.models import DurationField, ExpressionWrapper, F
from django.db.models.functions import Now

from models_admin import overview
from models_admin.models import SILENT_AFTER, Instance, Node, PortalConfig
from models_admin.nodes import memory_map
from models_admin.nodes.memory_map import Bar
from models_admin.states import InstanceState as S
from models_admin.templatetags.amounts import span

# Heartbeats come every few seconds; a page that counts them is restless.
_JUST_NOW = timedelta(seconds=15)


@dataclass(frozen=True)
class NodeOverview:
    """One node with what runs on it."""

    node: Node
    silence: timedelta | None
    bars: list[Bar]
    replicas: list[overview.Replica]
    elsewhere: int

    @property
    def is_alive(self) -> bool:
        """True while its worker announces itself."""
        return self.silence is not None and self.silence < SILENT_AFTER

    @property
    def tone(self) -> str:
        """The colour of its state."""
        if not self.is_alive:
            return "bad"
        return "ok" if self.node.accepts_replicas else "warn"

    @property
    def word(self) -> str:
        """Its state in a word."""
        if not self.is_alive:
            return "silent"
        return "ready" if self.node.accepts_replicas else "takes nothing new"

    @property
    def heard(self) -> str:
        """When it was last heard of."""
        if self.silence is None:
            return "never"
        return "just now" if self.silence < _JUST_NOW else f"{span(self.silence)} ago"

    @property
    def trouble(self) -> str:
        """What a silence means, in a sentence; empty while there is none."""
        if self.is_alive:
            return ""
        name = self.node.name
        if self.silence is None:
            return f"{name} has never been heard of: its worker hasn't started yet."
        heard = f"{name} hasn't been heard of for {span(self.silence)}"
        if not self.replicas:
            return f"{heard}; nothing runs there."
        if self.elsewhere:
            return f"{heard}; its replicas run elsewhere until it returns."
        return f"{heard}; its replicas are out of reach, and no other machine has taken them."


def nodes() -> list[NodeOverview]:
    """All nodes by name."""
    reserve = PortalConfig.current().memory_reserve_mib * 2**20
    on: dict[int, list[Instance]] = defaultdict(list)
    elsewhere: dict[int, set[int]] = defaultdict(set)
    for one in (
        Instance.objects.current()
        .exclude(node=None)
        .select_related("served__external", "node")
        .order_by("created_at")
    ):
        assert one.node_id is not None, "excluded above"
        on[one.node_id].append(one)
        if one.state == S.READY:
            elsewhere[one.served_id].add(one.node_id)
    # By the database's clock, as everything about silence.
    silence = ExpressionWrapper(Now() - F("last_seen"), output_field=DurationField())
    silences: dict[int, timedelta | None] = dict(Node.objects.values_list("pk", silence))
    return [
        NodeOverview(
            node=node,
            silence=silences.get(node.pk),
            bars=memory_map.bars_of(node, on[node.pk], reserve),
            replicas=[overview.replica(one) for one in on[node.pk]],
            elsewhere=sum(bool(elsewhere[one.served_id] - {node.pk}) for one in on[node.pk]),
        )
        for node in Node.objects.all()
    ]
