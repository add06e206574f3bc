"""MongoDB: connection, schema and indexes, migrations, repositories, backup, and the embedded server.

Everything that knows a collection's name or a document's shape lives here. Fields, indexes, queries and what may expire
are declared once, in `storage.documents`; the repository that writes a document changes together with it. What changes
documents that are stored already is a step in `storage.migrations`. Imports `flead` and `config` only.
"""
