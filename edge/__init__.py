"""What runs at or near a device: gateway, buffers, protocol adapters, compressed models.

`client` speaks to the global server for a device or a program. May import `flead`, `config`, `data`, `kafka` and
`storage`.
"""
