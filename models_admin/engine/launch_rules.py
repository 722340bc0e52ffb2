"""What a launch configuration must fulfil: one place for the pages, the admin site, REST and the command line.

A rule looks at what holds in the end, but complains only about what this layer itself says: what the portal's
configuration says wrongly is not a model's fault.
"""

import contextlib
import socket
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import PurePosixPath

from django.core.exceptions import ValidationError
from django.urls import URLPattern, URLResolver, get_resolver

from llamaproj import env
from llamaproj.errors import InvalidInput
from models_admin.engine import launch, launch_config, named_files
from models_admin.engine.launch_config import LaunchConfig
from models_admin.memory import footprint
from models_admin.models import LaunchParameters, PortalConfig, ServedModel
from models_admin.templatetags.amounts import as_bytes

_PLAIN_CACHE = frozenset({"f32", "f16", "bf16"})
_SINGLE_LINE = ("binary", "host", "draft_model", "lora", "node_labels", "external_name")
# Checked by the database, or no field of a form.
_LEFT_OUT = {"file", "external", "desired_replicas"}


def check(layer: ServedModel | PortalConfig, portal: PortalConfig | None = None) -> None:
    """Raise `InvalidInput` for the first value that can't be; `param` names it.

    Of the portal's configuration it also checks what becomes of each model with it.
    """
    _check_values(layer)
    if isinstance(layer, PortalConfig):
        for param, complaint in _complaints(layer, launch_config.of_portal(layer)):
            raise InvalidInput(complaint, param=param)
        for served in ServedModel.objects.exclude(file=None):
            for param, complaint in _complaints(layer, launch_config.of(served, layer)):
                raise InvalidInput(f"{served.name} could not be started with this: {complaint}", param=param)
        return
    if layer._state.adding and layer.slug in reserved_slugs():
        raise InvalidInput("This short name is the portal's own.", param="slug")
    if layer.max_replicas < layer.min_replicas:
        raise InvalidInput("At most as many replicas as at least, or more.", param="max_replicas")
    for param, complaint in _complaints(layer, launch_config.of(layer, portal)):
        raise InvalidInput(complaint, param=param)


def doubts(served: ServedModel, portal: PortalConfig | None = None) -> list[str]:
    """What can be, but is perhaps not meant: sentences."""
    if served.file is None:
        return []
    portal = portal or PortalConfig.current()
    config, trained, found = launch_config.of(served, portal), served.file.context_tokens, []
    if trained and config.context_tokens > trained:
        found.append(
            f"The model was trained for {trained:,} tokens; with {config.context_tokens:,} its answers may "
            "become nonsense beyond that."
        )
    memory = footprint.estimate_of(served, portal)
    if memory and 0 < served.file.node.memory_bytes < memory.total:
        found.append(
            f"One replica takes about {as_bytes(memory.total)}, more than {served.file.node.name} has "
            f"({as_bytes(served.file.node.memory_bytes)}). Less context or fewer slots take less."
        )
    return found


def reserved_slugs() -> frozenset[str]:
    """Names that a page below /models/ has: a model of that name could not be reached."""
    patterns: list[URLPattern | URLResolver] = get_resolver("models_admin.urls").url_patterns
    return frozenset(str(one.pattern).split("/", 1)[0] for one in patterns) - {""}


def _check_values(layer: LaunchParameters) -> None:
    """Each value by itself."""
    try:
        layer.clean_fields(exclude=_LEFT_OUT | {"extra_flags"})
    except ValidationError as error:
        param, messages = next(iter(error.message_dict.items()))
        raise InvalidInput(messages[0], param=param) from None
    for name in _SINGLE_LINE:
        value = getattr(layer, name, "")
        if any(
            ord(sign) < ord(" ") for text in ([value] if isinstance(value, str) else value) for sign in text
        ):
            raise InvalidInput("This holds a sign that can't be printed.", param=name)
    if "\0" in layer.chat_template:
        raise InvalidInput("This holds a sign that can't be printed.", param="chat_template")
    for name in ("binary", "draft_model"):
        path = getattr(layer, name)
        if path and not PurePosixPath(path).is_absolute():
            raise InvalidInput("This is an absolute path: it begins with /.", param=name)
    if complaint := _against(layer.host):
        raise InvalidInput(complaint, param="host")
    for param, complaint in named_files.complaints(layer):
        raise InvalidInput(complaint, param=param)
    launch.check_extra_flags(layer.extra_flags)


def _against(host: str) -> str:
    """Why a replica may not listen at this address, by the rule for NODE_ADDRESS; empty where it may."""
    with contextlib.suppress(OSError):
        # Resolvers take 0 and 0x0 for an address, too.
        host = socket.inet_ntoa(socket.inet_aton(host))
    try:
        address = ip_address(host)
    except ValueError:
        return ""
    if address.is_unspecified:
        return "This means all networks of the machine; name one address, to which the portal connects, too."
    if address.is_global and not env.NODE_PUBLIC:
        return (
            "This is a public address, where anybody could reach the llama-server. Give a private one, or set "
            "NODE_PUBLIC=1 if a firewall lets only the portal in."
        )
    return ""


def _complaints(layer: LaunchParameters, config: LaunchConfig) -> Iterator[tuple[str, str]]:
    """What doesn't go together, each with the parameter of this layer that is to blame."""
    for params, wrong, complaint in _combinations(config):
        said = next((name for name in params if getattr(layer, name) not in (None, "", [])), None)
        if wrong and said is not None:
            yield said, complaint


def _combinations(config: LaunchConfig) -> Iterator[tuple[tuple[str, ...], bool, str]]:
    """The parameters that may be to blame, whether they are, the sentence."""
    # A smaller batch alone takes the physical one along (`launch.LaunchSpec`).
    yield (
        ("ubatch_tokens",),
        config.ubatch_tokens > config.batch_tokens,
        f"The physical batch is a part of the batch: at most {config.batch_tokens:,} tokens.",
    )
    yield (
        ("last_port", "first_port"),
        config.first_port > config.last_port,
        f"The first port ({config.first_port}) comes after the last one ({config.last_port}).",
    )
    yield (
        ("pooling",),
        bool(config.pooling) and not (config.embeddings or config.reranking),
        "Pooling is for embeddings: switch those on, or leave this empty.",
    )
    yield (
        ("reranking", "pooling"),
        config.reranking and config.pooling not in {"", "rank"},
        "Reranking needs the pooling “rank”, or none said.",
    )
    yield (
        ("cache_type_v", "flash_attention"),
        config.cache_type_v not in _PLAIN_CACHE and config.flash_attention == "off",
        f"Values of the KV cache as {config.cache_type_v} need flash attention: on, or left to the engine.",
    )
    yield (
        ("tensor_split",),
        bool(config.tensor_split) and config.split_mode == "none",
        "Shares of the GPUs need a split by layers or by rows.",
    )
