"""The event store: the log and its keys in PostgreSQL, the only truth there is, and the PostgreSQL that comes with memfold."""
