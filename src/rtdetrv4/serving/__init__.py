"""A server of detectors: batches of what comes at the same time, limits on what strangers send, and a page.

It stands on the runtime alone, and so serves exported files without torch; other models come as a `Network`.
"""

from rtdetrv4.serving.batching import BatchSettings
from rtdetrv4.serving.limits import Limits
from rtdetrv4.serving.network import Network
from rtdetrv4.serving.service import Service

__all__ = ["BatchSettings", "Limits", "Network", "Service"]
