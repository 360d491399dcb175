"""CasJobs, SciServer's login, SkyServer and SAS on 127.0.0.1, backed by a simulated survey."""

from .faults import KINDS, WHERE, Faults
from .log import Request
from .server import Services

__all__ = ["KINDS", "WHERE", "Faults", "Request", "Services"]
