"""The mart: a PostgreSQL copy of MongoDB for SQL, which follows MongoDB's change streams exactly."""
