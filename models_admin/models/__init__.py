"""The catalog (nodes, files, external servers, served models) and what runs of it (instances)."""

from models_admin.models.download import Download
from models_admin.models.external import ExternalServer
from models_admin.models.file import ModelFile
from models_admin.models.footprint import Footprint
from models_admin.models.instance import Instance, InstanceChange, InstanceQuerySet
from models_admin.models.node import SILENT_AFTER, Node
from models_admin.models.parameters import LaunchParameters, PortalConfig
from models_admin.models.served import ServedModel, ServedModelQuerySet

__all__ = [
    "SILENT_AFTER",
    "Download",
    "ExternalServer",
    "Footprint",
    "Instance",
    "InstanceChange",
    "InstanceQuerySet",
    "LaunchParameters",
    "ModelFile",
    "Node",
    "PortalConfig",
    "ServedModel",
    "ServedModelQuerySet",
]
