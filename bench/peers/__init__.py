"""Other systems under the same load, each with its own idiom: ``python -m bench.peers NAME``.

One module a peer. Each starts what it needs on loopback with free ports, and stops it. To add one, derive from
`bench.peers.interface.Peer` and put it into `bench.peers.interface.known`.
"""

from bench.peers.interface import KEYS, MissingPeerError, Peer, PeerError, known

__all__ = ["KEYS", "MissingPeerError", "Peer", "PeerError", "known"]
