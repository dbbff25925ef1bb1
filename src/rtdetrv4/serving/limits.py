"""What a server takes from strangers, and for how long it waits for them."""

from __future__ import annotations

from typing import NamedTuple

from rtdetrv4.errors import ConfigError

MIB = 2**20
MEGAPIXEL = 1_000_000


class Limits(NamedTuple):
    """Limits on what one client may send, and on what all of them together may occupy."""

    request_bytes: int = 64 * MIB
    """The body of a request."""
    image_bytes: int = 20 * MIB
    """An image file."""
    images: int = 16
    """Images per request."""
    pixels: int = 64 * MEGAPIXEL
    """An image, decoded."""
    tiles: int = 256
    """Tiles of an image."""
    timeout_s: float = 30.0
    """From a request to its answer, without the time in which its body comes."""
    body_s: float = 30.0
    """In which the body of a request must come."""
    head_s: float = 10.0
    """In which the head of a request must come, and the first one on a new connection begin."""
    idle_s: float = 75.0
    """How long a connection may stay open between requests; more than balancers keep theirs."""
    send_s: float = 60.0
    """In which a client must have read an answer."""
    head_bytes: int = 16 * 1024
    """The first line and the headers of a request."""
    connections: int = 500
    """Open connections. For a new one beyond them, one without a request is closed; if all have one, it is refused."""
    requests_held: int = 4
    """How many bodies of the greatest size may be in memory at once; smaller ones may be more."""
    images_held: int = 4
    """How many images of the greatest size may be decoded in memory at once; smaller ones may be more."""

    def checked(self) -> Limits:
        """Return these limits.

        Raises:
            ConfigError: one of them lets nothing through, or contradicts another.
        """
        for name, value in self._asdict().items():
            if not value > 0:
                raise ConfigError(f"{name}: got {value}, expected more than 0.")
        if self.image_bytes > self.request_bytes:
            raise ConfigError(
                f"image_bytes: got {self.image_bytes}, expected at most request_bytes, {self.request_bytes}."
            )
        return self
