//! One event's way: the outbox row, the record in its topic, and what each view has made of it.
