"""What runs at or near a device: clients, aggregators, buffers.

`client` speaks to the global server for a device or a program, `secure` is a device's side of a secure sum,
`aggregator` merges the updates of devices near it before they travel, and `buffer` keeps them meanwhile. May import
`flead`, `config`, `data`, `kafka` and `storage`.
"""
