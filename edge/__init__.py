"""What runs at or near a device: gateway, buffers, protocol adapters, compressed models.

Empty until the edge step. May import `flead`, `config`, `data`, `kafka` and `storage`.
"""
