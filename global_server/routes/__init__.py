"""The REST interface, a router for each part of it: `routes(service, guard, audit, ...)` makes one."""
