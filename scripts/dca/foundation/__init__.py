"""Services that every stage uses and that know no wheel: errors, store, runner, documents, archives."""
