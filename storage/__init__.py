"""MongoDB: connection, schema and indexes, repositories, and the embedded server.

Everything that knows a collection's name or a document's shape lives here. A new collection or index goes into
`storage.schema`, the one declaration of them; fields of a document change together with its repository and its
validator. Imports `flead` and `config` only.
"""
